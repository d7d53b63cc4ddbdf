"""What `make test` leaves to `make test-slow`, and what guards the same thing there.

Tests that take many seconds and whose fault a quicker one would also show, so that everyone's run is short. Tests that
were written as slow ones are marked where they stand.
"""

from collections.abc import Iterable

import pytest

SLOW: dict[str, dict[str, tuple[str, ...]]] = {
    "test_adapters_weight_only.py": {
        "merging with this package; test_hub_remote_code.py": (
            "test_code_from_the_hub_merges_right_without_this_package",
        ),
    },
    "test_compile_inductor.py": {
        "traced whole in test_modeling_*.py and test_decode_step.py; one rounding is compiled here": (
            "test_glm_forward",
            "test_glm_forward_in_bf16",
            "test_glm_generates_from_a_static_cache",
            "test_ernie3_forward",
            "test_ernie3_generates_from_a_static_cache",
        ),
    },
    "test_convert_glm130b.py": {
        "kills in forked processes: test_consume_kills.py, test_verification.py": (
            "test_a_killed_conversion_goes_on_and_gives_the_same_bytes",
        ),
    },
    "test_convert_glm130b_quantized.py": {
        "kills in forked processes: test_consume_kills.py, quantized too": (
            "test_a_killed_quantization_goes_on_and_gives_the_same_bytes",
        ),
    },
    "test_corpus_duplicates.py": {
        "what is found with few keys": ("test_a_partition_takes_the_memory_that_is_planned",),
    },
    "test_decode_step.py": {
        "the step on the CPU, in its file's other tests and in test_generation_*.py": ("@found",),
        "the other parameter": ("test_the_step_of_a_static_cache_is_one_graph[None]",),
    },
    "test_devices_ernie3.py": {
        "one process; test_tensor_parallel_glm130b.py": ("test_two_ranks_give_the_numbers_of_one",),
    },
    "test_devices_page.py": {
        "the page's commands; test_device_maps.py, test_tensor_parallel_glm130b.py": (
            "test_python_blocks_run_in_order",
            "test_tensor_parallel_script_runs",
        ),
        "the command in test_planner.py, the numbers in test_the_table_is_the_planner_s": (
            "test_plan_commands_print_what_stands_below_them",
        ),
    },
    "test_distillation_ernie3_trainer.py": {
        "the other parameter": ("test_training_resumes_exactly[1.0]",),
        "test_teacher_learns_as_if_it_were_alone; the other parameter": (
            "test_every_learner_learns_as_if_it_were_alone",
            "test_teacher_pretrains_on_all_tasks_meanwhile[False]",
        ),
    },
    "test_docs.py": {
        "each step: test_label_data_*.py, test_finetune_ernie.py, test_ernie_shrinking.py": (
            "test_labels_become_a_served_model",
        ),
    },
    "test_ernie_shrinking_command.py": {
        "each stage: test_ernie_shrinking.py": ("test_every_stage_of_uie",),
    },
    "test_evaluation_glm130b_tasks.py": {
        "what the page calls, in its file's other tests": ("test_the_page_runs_as_printed",),
    },
    "test_examples_ernie.py": {
        "test_finetune_ernie.py": ("test_training_script_runs",),
    },
    "test_examples_ernie3.py": {
        "test_distillation_ernie3_*.py": ("test_students_come_out_without_their_auxiliary_layer",),
        "any causal model in its place": ("test_the_generator_learns_to_write",),
    },
    "test_export_ernie.py": {
        "the other models": (
            "test_torch_export_agrees[ErnieForQuestionAnswering]",
            "test_torch_export_agrees[ErnieForMaskedLM]",
            "test_torch_export_agrees[ErnieForMultipleChoice]",
            "test_torch_export_agrees[ErnieForUTC]",
            "test_torch_export_agrees[ErnieForPreTraining]",
            "test_torch_export_agrees[ErnieForTokenClassification]",
            "test_onnx_agrees[ErnieModel]",
            "test_onnx_agrees[ErnieForUTC]",
        ),
    },
    "test_faults.py": {
        "the first flow": (
            "test_a_disturbed_run_loses_and_mixes_nothing[ernie3]",
            "test_a_disturbed_run_loses_and_mixes_nothing[ernie-reverse]",
        ),
        "test_inspect_hostile.py, test_reader_limits.py, test_paddle_pickle.py, test_*_refusals.py, test_publish.py": (
            "test_hostile_inputs_are_refused_with_a_message",
        ),
    },
    "test_finetune_adapters.py": {
        "the other order": ("test_targets_are_there_in_either_order_and_peft_is_not_imported[import hf_glm_ernie]",),
    },
    "test_finetune_ernie.py": {
        "the other parameter": (
            "test_a_separable_task_is_learnt[qlora]",
            "test_virtual_tokens_learn_and_open_exactly[prefix-0.9]",
            "test_virtual_tokens_learn_and_open_exactly[p-tuning-0.7]",
            "test_uie_learns_a_new_name[lora]",
        ),
    },
    "test_finetune_ernie_reading.py": {
        "one seed: test_answers_are_learnt_and_found": (
            "test_the_published_grid",
            "test_a_recipe_with_several_seeds",
        ),
    },
    "test_finetune_glm130b.py": {
        "the other ways": (
            "test_every_other_way_lowers_the_loss[p-tuning 0.01]",
            "test_every_other_way_lowers_the_loss[ia3 0.03]",
            "test_every_other_way_lowers_the_loss[prompt 0.03]",
            "test_every_other_way_lowers_the_loss[lora 0.1 0.005]",
            "test_every_other_way_lowers_the_loss[lora true 0.005]",
            "test_a_resumed_run_is_the_uninterrupted_one[full]",
            "test_a_resumed_run_is_the_uninterrupted_one[prefix]",
        ),
    },
    "test_finetune_learning_glm130b.py": {
        "test_finetune_trl_glm130b.py learns facts; a step leaves the base: test_quantization_libraries.py": (
            "test_new_facts_are_learnt_and_the_base_is_unchanged",
        ),
    },
    "test_finetune_page.py": {
        "test_finetune_*_glm130b.py": ("test_the_page_runs_from_top_to_bottom",),
    },
    "test_finetune_steps_glm130b.py": {
        "one process's step; two processes: test_parallel_ernie3_trainer.py": (
            "test_fsdp2_and_ddp_steps_in_two_processes_are_the_single_one",
        ),
    },
    "test_finetune_trl_glm130b.py": {
        "the other kinds of rows": (
            "test_rows_are_those_of_instruction_pairs_and_facts_are_learnt[messages]",
            "test_rows_are_those_of_instruction_pairs_and_facts_are_learnt[rows of InstructionPairs]",
            "test_a_prompt_of_text_that_is_laid_out",
            "test_the_script_teaches_facts[messages]",
            "test_the_script_teaches_facts[pairs of texts]",
        ),
    },
    "test_gpu_benchmark.py": {
        "each part's own tests": ("@dry",),
    },
    "test_host_interface.py": {
        "the other versions": (
            "test_an_untested_host_is_named_once_at_import[5.16.1-1]",
            "test_an_untested_host_is_named_once_at_import[5.25.0.dev0-1]",
            "test_an_untested_host_is_named_once_at_import[5.17.0-0]",
            "test_an_untested_host_is_named_once_at_import[5.24.9-0]",
        ),
        "the other class": ("test_copies_on_the_hub_warn_too[AutoTokenizer]",),
    },
    "test_labels_glm130b.py": {
        "uncompiled": ("test_a_compiled_model_stops_too",),
    },
    "test_layers.py": {
        "the other parameter": (
            "test_the_hooks_that_importing_leaves_are_the_two_there_are[before]",
            "test_the_hooks_that_importing_leaves_are_the_two_there_are[never]",
        ),
    },
    "test_lm_eval_glm130b.py": {
        "the same tasks in this process": ("test_the_command_gives_the_same_numbers",),
    },
    "test_offload.py": {
        "uncompiled": ("test_compiled_with_interruptions_and_not_as_one_graph",),
    },
    "test_paddle_pickle.py": {
        "the other bombs": ("test_bombs_cost_little_and_are_refused[many short texts]",),
    },
    "test_parallel_ernie3.py": {
        "the Trainer's two processes: test_parallel_ernie3_trainer.py": ("test_two_processes_are_one",),
    },
    "test_planner.py": {
        "the released table": ("test_tensor_parallel_counts_are_those_of_real_ranks",),
    },
    "test_planner_training.py": {
        "what autograd saves, layer by layer": (
            "test_the_peak_is_what_torch_allocates",
            "test_largest_batch_and_least_cards_are_the_last_that_fit",
        ),
    },
    "test_pretraining_ernie3_packing.py": {
        "the other parameter": ("test_a_packed_run_resumes_exactly[2]",),
    },
    "test_publish.py": {
        "other refusals": ("test_a_repository_that_computes_otherwise_is_refused",),
    },
    "test_quantization_weight_only.py": {
        "whole numbers of one process; test_tensor_parallel_glm130b.py": ("test_two_ranks_give_the_numbers_of_one",),
        "test_a_folder_that_brings_its_code": ("test_without_this_package_a_quantized_folder_does_not_load",),
    },
    "test_reference_outputs.py": {
        "test_every_conversion_keeps_what_the_model_computes": ("test_publish_compares_with_the_conversion",),
    },
    "test_tokenization_ernie_unicode.py": {
        "the other parameter": ("test_every_code_point[False]",),
    },
    "test_weight_only_compiled.py": {
        "the kernels' values: test_weight_only_triton.py": ("@compiled",),
    },
}
"""Test file -> {what guards the same in `make test`: (test, test[one of its parameters], @fixture of tests)}."""


def mark_slow(items: Iterable[pytest.Item]) -> None:
    """Marks the collected tests that are in the table."""
    for item in items:
        guards = SLOW.get(item.path.name, {})
        for guard, names in guards.items():
            fixtures = {f"@{name}" for name in getattr(item, "fixturenames", ())}
            if {item.name, item.name.partition("[")[0], *fixtures} & {*names}:
                item.add_marker(pytest.mark.slow(reason=f"in `make test`: {guard}"))
