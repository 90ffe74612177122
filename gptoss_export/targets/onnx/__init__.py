"""ONNX: the decoder as one model for onnxruntime and onnxruntime-genai.

    model.onnx         prefill and decode in one; its weights are external data, by offset in the safetensors files
    genai_config.json  what onnxruntime-genai needs to generate with the model
    probe.onnx         for cuda: a small layer of experts with known results, run before the model is loaded

How a model is made. The decode program is traced, and each of its nodes is one of the project's ops or one of a few
PyTorch operators. `converters` maps each of them to a method of a writer, `export` puts the model together. There is a
writer for each device: onnxruntime runs other ops on a CPU (`writer_cpu`) than on CUDA (`writer_cuda`). The ops say
nothing about the number of tokens in a call. So the nodes of the decode program serve a prompt as well, and no other
program is traced.

How a model runs. An executor (`executor_cpu`, `executor_cuda`) answers the runner. It calls a model (`model_cpu`,
`model_cuda`), which holds onnxruntime's session and the KV caches of all slots.

The two devices:

    cpu    float32. Needs onnxruntime and numpy. Imports no torch
    cuda   bfloat16 with a residual stream of float32. Needs onnxruntime-gpu, and torch for its buffers

A model has no machine code, so the arch of its artifact is `any`, and no build needs a GPU. By default a model for cpu
uses onnxruntime's own attention. With the option `portable` it has standard operators alone, and functions made of them
(`functions`), for any runtime of the opset.

`model_files` and `requirements` are what the compiling and the running half share.
"""
