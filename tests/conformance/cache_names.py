"""The host's test of both names of a cache, without its demand that the older one warn: both are right here."""

from typing import Any

import torch
from transformers import DynamicCache

from hf_glm_ernie.host_interface import returned_cache


class BothCacheNames:
    """Stands in for `test_bc_cache_name_forward` of the host's model suite (transformers 5.24)."""

    model_tester: Any
    all_model_classes: Any
    _prepare_for_class: Any

    def test_bc_cache_name_forward(self) -> None:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config).eval()
            rows = self._prepare_for_class(inputs, model_class)
            if returned_cache(model(**rows)) is None:
                continue  # it reads in both directions
            caches = [DynamicCache(config=config.get_text_config(decoder=True)) for _ in range(2)]
            outputs = [model(**rows, cache=caches[0]), model(**rows, past_key_values=caches[1])]
            for cache, output in zip(caches, outputs, strict=True):
                assert returned_cache(output) is cache
            assert caches[0].get_seq_length() > 0
            for one, other in zip(*(cache.layers for cache in caches), strict=True):
                torch.testing.assert_close(one.keys, other.keys, rtol=0, atol=0)
                torch.testing.assert_close(one.values, other.values, rtol=0, atol=0)
