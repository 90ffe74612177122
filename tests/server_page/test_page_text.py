"""The page in a browser: how an answer is written. It is only ever text, however it is cut into pieces."""

from __future__ import annotations

import random
from typing import Any

import pytest
from page_mock import Mock, finishes, says, thinks
from page_tab import Tab

INJECTIONS = [
    "<script>window.hit = 1</script>",
    '<img src="https://example.com/x.png" onerror="window.hit = 1">',
    '<iframe srcdoc="<script>parent.hit = 1</script>"></iframe>',
    '<style>* { display: none }</style><link rel=stylesheet href="https://example.com/x.css">',
    "![x](https://example.com/x.png) [y](javascript:window.hit=1)",
    "&lt;b&gt; &amp; \u202e \u0000 </code></pre><b>bold</b>",
]

# Writes a text in pieces: what each block holds. Inline code is marked with brackets.
WRITE = """async ([pieces]) => {
  const { Writer } = await import("/page/writer.js");
  const container = document.createElement("div");
  let prose = "";
  const writer = new Writer(container, (text) => (prose += text));
  for (const piece of pieces) writer.push(piece);
  writer.end();
  const inline = (node) => (node.nodeName === "CODE" ? `[${node.textContent}]` : node.textContent);
  const blocks = [...container.children].map((block) =>
    block.nodeName === "P"
      ? [...block.childNodes].map(inline).join("")
      : { language: block.querySelector("span").textContent, code: block.querySelector("code").textContent },
  );
  return { blocks, prose };
}"""

TEXTS: list[tuple[str, list[Any]]] = [
    ("One.\nTwo.\n\nThree.", ["One.\nTwo.", "Three."]),
    ("  \n\nOne.\n \n\n\nTwo.\n", ["One.", "Two."]),
    ("Use `a` and ``b`c``.", ["Use [a] and [b`c]."]),
    ("A lone ` stays\nand `x` is code", ["A lone ` stays\nand [x] is code"]),
    ("An end with `open", ["An end with `open"]),
    ("``", ["``"]),
    ("```py\na = 1\n\n\nb = `2`\n```\nAfter.", [{"language": "py", "code": "a = 1\n\n\nb = `2`"}, "After."]),
    ("Before:\n```\nx\n```", ["Before:", {"language": "", "code": "x"}]),
    ("````md\n```\ninner\n```\n````", [{"language": "md", "code": "```\ninner\n```"}]),
    ("~~~\n```\n~~~ \nz", [{"language": "", "code": "```"}, "z"]),
    (
        "1. List:\n   ```c\n   int a;\n     b;\n   ```\n2. Next",
        ["1. List:", {"language": "c", "code": "int a;\n  b;"}, "2. Next"],
    ),
    ("```js title=x\nunclosed\n``", [{"language": "js", "code": "unclosed\n``"}]),
    ("```x``` is inline", ["[x] is inline"]),
    ("```", ["```"]),
    ("```\n```", [{"language": "", "code": ""}]),
    ("`a\n\nb`", ["`a", "b`"]),
    ("*bold* # not a heading\n# a heading\n- a list", ["*bold* # not a heading\n# a heading\n- a list"]),
    ("~~gone~~\n~", ["~~gone~~\n~"]),
]


def written(tab: Tab, pieces: list[str]) -> dict[str, Any]:
    return tab.evaluate(WRITE, [pieces])


def test_blocks(tab: Tab) -> None:
    for text, blocks in TEXTS:
        assert written(tab, [text])["blocks"] == blocks, text


def test_pieces_do_not_matter(tab: Tab) -> None:
    """Any way of cutting a text gives the same blocks, and the same text to speak."""
    drawn = random.Random(5)
    texts = [text for text, _ in TEXTS]
    texts += [
        "".join(drawn.choices(["`", "``", "```", "\n", "\n\n", " ", "a", "b c", "~~~"], k=20)) for _ in range(150)
    ]
    for text in texts:
        whole = written(tab, [text])
        assert written(tab, list(text)) == whole, text
        cuts = sorted(drawn.choices(range(len(text) + 1), k=3))
        assert written(tab, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == whole, text


def test_markup_in_an_answer_is_text(tab: Tab, mock: Mock) -> None:
    """In an answer, in code, in inline code, in reasoning and in the user's own message, also after a reload."""
    answer = "\n\n".join(
        [*INJECTIONS, *(f"`{text}`" for text in INJECTIONS), *(f"```\n{text}\n```" for text in INJECTIONS)]
    )
    mock.will(thinks("\n\n".join(INJECTIONS)), *(says(letter) for letter in answer), finishes())
    tab.send(INJECTIONS[0])
    for reload in (False, True):
        if reload:
            tab.page.reload()
        tab.ended()
        assert tab.body().locator("p").all_text_contents() == [*INJECTIONS, *INJECTIONS]
        assert tab.body().locator("pre").all_text_contents() == INJECTIONS
        assert tab.answers.locator("details p").all_text_contents() == INJECTIONS
        assert tab.questions.locator("p").all_text_contents() == INJECTIONS[:1]
        assert tab.page.locator("#turns").locator("script, img, iframe, style, link, a, b").count() == 0
        assert tab.evaluate("window.hit") is None


def test_the_policy_refuses_markup(tab: Tab) -> None:
    """Also if the page had a mistake: no element is made from text, and no inline or foreign code runs."""
    refused = tab.evaluate("""() => {
      try { document.body.innerHTML = "<b>x</b>"; return "" } catch (error) { return error.name }
    }""")
    assert refused == "TypeError"
    tab.evaluate("""() => {
      const image = new Image();
      image.src = "https://example.com/x.png";
      document.body.append(image);
    }""")
    tab.page.wait_for_timeout(200)
    assert len(tab.problems) == 2 and all(
        "Content Security Policy" in text or "TrustedHTML" in text for text in tab.problems
    )
    tab.problems.clear()
    tab.asked = [url for url in tab.asked if not url.startswith("https://example.com")]


@pytest.mark.parametrize("clipboard", [True, False], ids=["clipboard", "without"])
def test_copying(tab: Tab, mock: Mock, clipboard: bool) -> None:
    """A code block, and the whole answer as it was written. Pages over http from elsewhere have no clipboard."""
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.evaluate("() => { const own = navigator.clipboard; window.read = () => own.readText() }")
    if not clipboard:
        tab.evaluate("() => Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    answer = "Two:\n\n```sh\nls\n\npwd\n```\n\nDone `x`.\n"
    mock.will(says(answer), finishes())
    tab.send("Code?")
    tab.ended()
    for name, text in (("Copy this code", "ls\n\npwd"), ("Copy this answer", answer)):
        copy = tab.button(name)
        copy.click()
        tab.expect()(copy).to_have_text("Copied")
        assert tab.evaluate("read()") == text


def test_an_answer_is_appended(tab: Tab, mock: Mock) -> None:
    """A token adds to the last text. Nothing before it is touched, so that a long conversation stays quick."""
    mock.will(says("Before.\n\n```\ncode\n```\n"), finishes())
    tab.send("First.")
    tab.ended()
    tab.evaluate("""() => {
      const [before] = document.querySelectorAll("article.answer");
      window.seen = { before: 0, added: 0, removed: 0, text: 0 };
      new MutationObserver((records) => {
        for (const { type, target, addedNodes, removedNodes } of records) {
          seen.before += before.contains(target);
          seen.added += addedNodes.length;
          seen.removed += removedNodes.length;
          seen.text += type === "characterData";
        }
      }).observe(document.getElementById("turns"), { childList: true, characterData: true, subtree: true });
    }""")
    mock.will(*(says("word. " if index % 10 else "word.\n\n") for index in range(2000)), finishes())
    tab.send("Second.")
    tab.ended(2)
    seen = tab.evaluate("seen")
    assert seen["before"] == 0 and seen["removed"] == 0
    assert seen["text"] > 1500 and seen["added"] < 500  # a paragraph of ten words is two nodes
