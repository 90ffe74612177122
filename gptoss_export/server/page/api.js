/** The server's API. Addresses are relative, so that the page also works behind a proxy that adds a prefix. */

const KEY = "gptoss-export api key";

export const apiKey = {
  get: () => sessionStorage.getItem(KEY),
  set: (key) => sessionStorage.setItem(KEY, key),
};

export class ApiError extends Error {
  /** @param status HTTP status, or 0 where no answer or only a part of one came. */
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The name of the model that the server serves. */
export async function servedModel() {
  const models = await (await request("v1/models")).json();
  if (!models.data?.length) throw new ApiError("The server serves no model.");
  return models.data[0].id;
}

export async function metricsText() {
  return (await request("metrics")).text();
}

/** The chunks of a streamed chat completion. Throws ApiError, or the AbortError of `signal`. */
export async function* streamedChat(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let finished = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw new ApiError(chunk.error.message ?? "The server could not finish the answer.");
    finished ||= Boolean(chunk.choices?.[0]?.finish_reason);
    yield chunk;
  }
  if (!finished) throw new ApiError("The connection was lost before the answer was complete.");
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError(`The server sent what is not JSON: ${data.slice(0, 200)}`);
  }
}

async function request(address, options = {}) {
  const key = apiKey.get();
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(address, { ...options, headers, cache: "no-store" }).catch((error) => {
    throw error.name === "AbortError" ? error : new ApiError("The server cannot be reached. Is it running?");
  });
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  const text = await response.text().catch(() => "");
  let message = text.slice(0, 500);
  try {
    message = JSON.parse(text).error.message;
  } catch {
    message ||= "The server gave no reason.";
  }
  const wait = response.headers.get("Retry-After");
  const when = /^\d+$/.test(wait ?? "") ? ` Try again in ${wait} s.` : "";
  return new ApiError(`${message} (status ${response.status})${when}`, response.status);
}

/** The data of each server-sent event. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    while (true) {
      const { done, value } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError("The connection was lost before the answer was complete.");
      });
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((text) => text.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (!line && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
