"""GLM-130B in vLLM, as a plugin: `vllm serve FOLDER` opens a converted folder once this package is installed.

vLLM calls `register.register` (entry point `vllm.general_plugins`) in every one of its processes. Nothing else of the
package imports this folder, so that `import hf_glm_ernie` never imports vLLM.

GLM-130B is a causal decoder to vLLM, with three differences, each in a file of its own:

- positions of its own (`positions.py`), handed over by the interface for multimodal rotary positions;
- a bidirectional context (`attention.py`, `rows.py`), for which a step with prompts hands several rows for one
  request to the attention kernel;
- prompts that must be computed whole (`guards.py`): no chunked prefill, no prefix caching.

`model.py` is the model, `requests.py` makes prompts of requests, `checks.py` says what they may hold, `tokenizer.py`
is the tokenizer that decodes every id, `quantization.py` opens INT4 and INT8 folders, `adapters.py` sees to adapters.
`positions.py`, `rows.py`, `checks.py` and `repacking.py` are pure and need no vLLM.
"""
