"""Products of parameters of which `make test` runs a few: each value of each parameter in one test at least.

`make test-products` runs the rest, and so does CI. For tests that ask the same of every combination and take seconds
together; what is held against an original program's outputs is not among them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import pytest

PRODUCTS: dict[str, tuple[str, ...]] = {
    "test_archive_parts.py": ("test_parts_convert_to_the_bytes_of_the_unpacked_folder",),
    "test_computing_threads.py": ("test_any_number_of_threads_writes_the_same_bytes",),
    "test_convert_glm130b_quantized.py": (
        "test_integers_and_scales_are_carried_over_and_back",
        "test_bits_quantizes_what_would_have_been_written",
    ),
    "test_device_maps.py": ("test_the_planner_splits_no_layer", "test_offloaded_to_disk_gives_the_same_numbers"),
    "test_devices_ernie3.py": ("test_no_layer_is_split", "test_offloaded_to_disk"),
    "test_ernie3_memory.py": ("test_rows_of_a_batch_are_alone", "test_segments_equal_the_formula"),
    "test_finetune_adapters.py": ("test_virtual_tokens_on_classifiers_open_exactly",),
    "test_finetune_trl_glm130b.py": ("test_what_would_ruin_the_model_is_an_error",),
    "test_offload.py": ("test_the_numbers_of_one_device",),
    "test_planner.py": (
        "test_weights_are_those_of_a_real_quantized_load",
        "test_activations_are_those_that_torch_allocates",
    ),
    "test_planner_ernie3.py": (
        "test_weights_of_the_unified_models",
        "test_activations_of_a_text_behind_its_memories",
        "test_cache_of_both_stacks_and_the_memories",
    ),
    "test_planner_speed.py": ("test_a_step_of_glm130b_reads_every_weight_once",),
    "test_planner_training.py": (
        "test_activations_are_what_autograd_saves",
        "test_state_is_that_of_a_real_step",
        "test_activations_grow_as_autograd_s_do",
        "test_shards_are_those_of_fsdp2",
        "test_with_checkpointing_layers_leave_their_inputs",
    ),
    "test_pretraining_ernie3_documents.py": ("test_a_stream_resumes_exactly",),
    "test_pretraining_ernie3_packing.py": (
        "test_a_packed_stream_teaches_what_its_documents_teach",
        "test_every_token_is_read_once_and_predicted_once",
    ),
    "test_pretraining_ernie3_sources.py": ("test_a_source_goes_on_anywhere_bit_for_bit",),
    "test_pretraining_ernie3_trainer.py": ("test_built_rows_train_with_either_trainer",),
    "test_quantization_ernie3.py": (
        "test_quantize_save_and_reload",
        "test_what_the_libraries_take_by_themselves",
        "test_generates_from_memories",
        "test_a_lora_step_leaves_the_integers",
    ),
    "test_quantization_libraries.py": (
        "test_quantizes_the_linears_of_the_layers_and_nothing_else",
        "test_default_keeps_the_output_projection_and_quantizes_heads",
        "test_outputs_are_near_full_precision",
        "test_half_precision",
        "test_saved_folder_opens_without_argument_and_computes_the_same",
        "test_lora_step_trains_the_adapter_and_leaves_the_integers",
    ),
    "test_scoring_ernie3.py": ("test_equals_the_loop_over_tokens",),
    "test_verification.py": ("test_a_run_killed_around_verification_goes_on",),
}
"""Test file -> tests with more than one parameter."""


def mark_products(items: Iterable[pytest.Item]) -> None:
    """Marks what of the table's collected tests is left to `make test-products`. Slow ones do not count."""
    combinations = defaultdict(list)
    for item in items:
        name = item.name.partition("[")[0]
        quick = item.get_closest_marker("slow") is None
        if isinstance(item, pytest.Function) and quick and name in PRODUCTS.get(item.path.name, ()):
            combinations[item.path, name].append(item)
    for tests in combinations.values():
        # One object stands in all combinations of a value; some values are dicts, which no set takes.
        chosen = covering([{(name, id(value)) for name, value in test.callspec.params.items()} for test in tests])
        for number, test in enumerate(tests):
            if number not in chosen:
                test.add_marker(pytest.mark.product)


def covering(sets: Sequence[set[tuple[str, int]]]) -> set[int]:
    """Which sets to take so that every element is in one: again and again the one with most that is new."""
    missing, chosen = set[tuple[str, int]]().union(*sets), set()
    while missing:
        best = max(range(len(sets)), key=lambda number: len(sets[number] & missing))
        chosen.add(best)
        missing -= sets[best]
    return chosen
