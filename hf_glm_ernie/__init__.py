"""GLM-130B and ERNIE 3.0 for Hugging Face transformers.

Importing this package registers its classes with the Auto classes, GLM-130B's pipeline for text generation, and its
model types with PEFT once it is there, and does nothing else. Registering again is harmless. What only training or
evaluation needs is imported when it is first asked for: it brings the host's Trainer.
"""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from .configuration_ernie3 import Ernie3Config
from .configuration_ernie_compact import ErnieCompactConfig
from .configuration_ernie_gplinker import ErnieGPLinkerConfig
from .configuration_ernie_uie import ErnieUIEConfig
from .configuration_ernie_utc import ErnieUTCConfig
from .configuration_glm130b import Glm130bConfig
from .ernie_tasks.embeddings import sentence_embeddings
from .ernie_tasks.gplinker import extract
from .ernie_tasks.questions import answer_questions
from .ernie_tasks.uie import uie
from .ernie_tasks.utc import utc
from .finetuning.targets import register_default_targets
from .generation_glm130b import FilledText, fill_blanks
from .inference.pipeline import Glm130bTextGenerationPipeline
from .memory_ernie3 import Ernie3Memories
from .modeling_ernie3 import Ernie3Model, Ernie3ModelOutput, Ernie3PreTrainedModel
from .modeling_ernie3_heads import (
    Ernie3CausalLMOutput,
    Ernie3ForCausalLM,
    Ernie3ForMaskedLM,
    Ernie3ForMultipleChoice,
    Ernie3ForQuestionAnswering,
    Ernie3ForSequenceClassification,
    Ernie3ForTokenClassification,
)
from .modeling_ernie3_pretraining import Ernie3ForPreTraining, Ernie3ForPreTrainingOutput
from .modeling_ernie_compact import (
    ErnieCompactForMultipleChoice,
    ErnieCompactForQuestionAnswering,
    ErnieCompactForSequenceClassification,
    ErnieCompactForTokenClassification,
    ErnieCompactModel,
)
from .modeling_ernie_gplinker import ErnieForGPLinker, ErnieGPLinkerOutput
from .modeling_ernie_uie import ErnieForUIE, ErnieUIEOutput
from .modeling_ernie_utc import ErnieForUTC, ErnieUTCOutput
from .modeling_glm130b import Glm130bForCausalLM, Glm130bModel, Glm130bPreTrainedModel
from .quantization_weight_only import WeightOnlyConfig
from .tokenization_ernie import ErnieTokenizer
from .tokenization_ernie3 import Ernie3Tokenizer
from .tokenization_glm130b import Glm130bTokenizer
from .tokenization_glm130b_chat import one_chat_an_answer

if TYPE_CHECKING:
    from .ernie3_training.collator import Ernie3PretrainingCollator
    from .ernie3_training.control import ControllableLM
    from .ernie3_training.credible import AdversarialTexts, CredibleRows, ModelContinuations
    from .ernie3_training.distillation import OnlineDistillation, add_auxiliary_layer, drop_auxiliary_layer
    from .ernie3_training.distillation_trainer import Ernie3DistillationTrainer
    from .ernie3_training.documents import DocumentStreams, DocumentTokens
    from .ernie3_training.knowledge import DistantSupervision, KnowledgeTextPrediction, sentences_with
    from .ernie3_training.labels import ClassifierLabels, ControlLabels, JiebaKeywords
    from .ernie3_training.learning_rates import layerwise_lr_groups
    from .ernie3_training.masking import KnowledgeMasking, Lexicon
    from .ernie3_training.memories import MemoryBank
    from .ernie3_training.mixture import Ernie3PretrainingMixture
    from .ernie3_training.schedule import ProgressiveSchedule
    from .ernie3_training.sources import WeightedSources
    from .ernie3_training.splitting import split_sentences
    from .ernie3_training.structure import (
        SentenceDistance,
        SentenceReordering,
        label_permutation,
        permutation_classes,
        permutation_label,
    )
    from .ernie3_training.trainer import Ernie3PretrainingTrainer
    from .ernie_tasks.onnx_encoder import OnnxEncoder
    from .ernie_tasks.prompts import GENRES, SENTIMENTS, add_control_marks, build_control_prompt
    from .ernie_tasks.scoring import RankedText, ZeroShotAnswer, pair_scores, rerank, zero_shot
    from .ernie_training.evaluation import Evaluation, evaluate_ernie
    from .finetuning.collator import Glm130bCollator
    from .finetuning.methods import AdapterArguments, adapt
    from .finetuning.objectives import BlankInfilling, InstructionPairs, Packing, mix_instructions, published_arguments
    from .finetuning.weight_only import load_adapter, merging_into_integers
    from .glm130b_evaluation.answers import generate_answers
    from .glm130b_evaluation.evaluate import evaluate_task
    from .glm130b_evaluation.scoring import cond_log_probs, lm_loss
    from .inference.offload import Offload, set_offload

__version__ = "0.2.0"

# File -> what it gives when it is first asked for.
_LATER = {
    "finetuning.methods": ["AdapterArguments", "adapt"],
    "finetuning.weight_only": ["load_adapter", "merging_into_integers"],
    "glm130b_evaluation.answers": ["generate_answers"],
    "ernie3_training.distillation": ["OnlineDistillation", "add_auxiliary_layer", "drop_auxiliary_layer"],
    "ernie3_training.distillation_trainer": ["Ernie3DistillationTrainer"],
    "glm130b_evaluation.evaluate": ["evaluate_task"],
    "ernie3_training.learning_rates": ["layerwise_lr_groups"],
    "finetuning.objectives": [
        "BlankInfilling",
        "InstructionPairs",
        "Packing",
        "mix_instructions",
        "published_arguments",
    ],
    "finetuning.collator": ["Glm130bCollator"],
    "ernie3_training.trainer": ["Ernie3PretrainingTrainer"],
    "ernie3_training.collator": ["Ernie3PretrainingCollator"],
    "ernie3_training.control": ["ControllableLM"],
    "ernie3_training.credible": ["AdversarialTexts", "CredibleRows", "ModelContinuations"],
    "ernie3_training.documents": ["DocumentStreams", "DocumentTokens"],
    "ernie3_training.knowledge": ["DistantSupervision", "KnowledgeTextPrediction", "sentences_with"],
    "ernie3_training.labels": ["ClassifierLabels", "ControlLabels", "JiebaKeywords"],
    "ernie3_training.masking": ["KnowledgeMasking", "Lexicon"],
    "ernie3_training.memories": ["MemoryBank"],
    "ernie3_training.mixture": ["Ernie3PretrainingMixture"],
    "ernie3_training.schedule": ["ProgressiveSchedule"],
    "ernie3_training.sources": ["WeightedSources"],
    "ernie3_training.structure": [
        "SentenceDistance",
        "SentenceReordering",
        "label_permutation",
        "permutation_classes",
        "permutation_label",
    ],
    "ernie_tasks.onnx_encoder": ["OnnxEncoder"],
    "ernie_training.evaluation": ["Evaluation", "evaluate_ernie"],
    "ernie_tasks.prompts": ["GENRES", "SENTIMENTS", "add_control_marks", "build_control_prompt"],
    "ernie_tasks.scoring": ["RankedText", "ZeroShotAnswer", "pair_scores", "rerank", "zero_shot"],
    "glm130b_evaluation.scoring": ["cond_log_probs", "lm_loss"],
    "ernie3_training.splitting": ["split_sentences"],
    "inference.offload": ["Offload", "set_offload"],
}
_FILE_OF = {name: file for file in _LATER for name in _LATER[file]}

AutoConfig.register(Glm130bConfig.model_type, Glm130bConfig, exist_ok=True)
AutoModel.register(Glm130bConfig, Glm130bModel, exist_ok=True)
AutoModelForCausalLM.register(Glm130bConfig, Glm130bForCausalLM, exist_ok=True)
AutoTokenizer.register(Glm130bConfig, tokenizer_class=Glm130bTokenizer, exist_ok=True)

AutoConfig.register(ErnieGPLinkerConfig.model_type, ErnieGPLinkerConfig, exist_ok=True)
AutoConfig.register(ErnieUIEConfig.model_type, ErnieUIEConfig, exist_ok=True)
AutoConfig.register(ErnieUTCConfig.model_type, ErnieUTCConfig, exist_ok=True)
AutoModel.register(ErnieGPLinkerConfig, ErnieForGPLinker, exist_ok=True)
AutoModel.register(ErnieUIEConfig, ErnieForUIE, exist_ok=True)
AutoModel.register(ErnieUTCConfig, ErnieForUTC, exist_ok=True)
# This also makes the class known by its name, which is how the Hub's `PaddlePaddle/*` folders ask for it; the host's
# own choice for its `ernie` configuration stays.
AutoTokenizer.register(ErnieGPLinkerConfig, tokenizer_class=ErnieTokenizer, exist_ok=True)
AutoTokenizer.register(ErnieUIEConfig, tokenizer_class=ErnieTokenizer, exist_ok=True)
AutoTokenizer.register(ErnieUTCConfig, tokenizer_class=ErnieTokenizer, exist_ok=True)

AutoConfig.register(ErnieCompactConfig.model_type, ErnieCompactConfig, exist_ok=True)
AutoModel.register(ErnieCompactConfig, ErnieCompactModel, exist_ok=True)
AutoModelForSequenceClassification.register(ErnieCompactConfig, ErnieCompactForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(ErnieCompactConfig, ErnieCompactForTokenClassification, exist_ok=True)
AutoModelForQuestionAnswering.register(ErnieCompactConfig, ErnieCompactForQuestionAnswering, exist_ok=True)
AutoModelForMultipleChoice.register(ErnieCompactConfig, ErnieCompactForMultipleChoice, exist_ok=True)
AutoTokenizer.register(ErnieCompactConfig, tokenizer_class=ErnieTokenizer, exist_ok=True)

AutoConfig.register(Ernie3Config.model_type, Ernie3Config, exist_ok=True)
AutoModel.register(Ernie3Config, Ernie3Model, exist_ok=True)
AutoModelForPreTraining.register(Ernie3Config, Ernie3ForPreTraining, exist_ok=True)
AutoModelForCausalLM.register(Ernie3Config, Ernie3ForCausalLM, exist_ok=True)
AutoModelForMaskedLM.register(Ernie3Config, Ernie3ForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(Ernie3Config, Ernie3ForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(Ernie3Config, Ernie3ForTokenClassification, exist_ok=True)
AutoModelForQuestionAnswering.register(Ernie3Config, Ernie3ForQuestionAnswering, exist_ok=True)
AutoModelForMultipleChoice.register(Ernie3Config, Ernie3ForMultipleChoice, exist_ok=True)
AutoTokenizer.register(Ernie3Config, tokenizer_class=Ernie3Tokenizer, exist_ok=True)


def __getattr__(name: str) -> Any:
    """Imports what is asked for the first time."""
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_FILE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Everything that can be asked for."""
    return sorted({*globals(), *__all__})


__all__ = [
    "GENRES",
    "SENTIMENTS",
    "AdapterArguments",
    "AdversarialTexts",
    "BlankInfilling",
    "ClassifierLabels",
    "ControlLabels",
    "ControllableLM",
    "CredibleRows",
    "DistantSupervision",
    "DocumentStreams",
    "DocumentTokens",
    "Ernie3CausalLMOutput",
    "Ernie3Config",
    "Ernie3DistillationTrainer",
    "Ernie3ForCausalLM",
    "Ernie3ForMaskedLM",
    "Ernie3ForMultipleChoice",
    "Ernie3ForPreTraining",
    "Ernie3ForPreTrainingOutput",
    "Ernie3ForQuestionAnswering",
    "Ernie3ForSequenceClassification",
    "Ernie3ForTokenClassification",
    "Ernie3Memories",
    "Ernie3Model",
    "Ernie3ModelOutput",
    "Ernie3PreTrainedModel",
    "Ernie3PretrainingCollator",
    "Ernie3PretrainingMixture",
    "Ernie3PretrainingTrainer",
    "Ernie3Tokenizer",
    "ErnieCompactConfig",
    "ErnieCompactForMultipleChoice",
    "ErnieCompactForQuestionAnswering",
    "ErnieCompactForSequenceClassification",
    "ErnieCompactForTokenClassification",
    "ErnieCompactModel",
    "ErnieForGPLinker",
    "ErnieForUIE",
    "ErnieForUTC",
    "ErnieGPLinkerConfig",
    "ErnieGPLinkerOutput",
    "ErnieTokenizer",
    "ErnieUIEConfig",
    "ErnieUIEOutput",
    "ErnieUTCConfig",
    "ErnieUTCOutput",
    "Evaluation",
    "FilledText",
    "Glm130bCollator",
    "Glm130bConfig",
    "Glm130bForCausalLM",
    "Glm130bModel",
    "Glm130bPreTrainedModel",
    "Glm130bTextGenerationPipeline",
    "Glm130bTokenizer",
    "InstructionPairs",
    "JiebaKeywords",
    "KnowledgeMasking",
    "KnowledgeTextPrediction",
    "Lexicon",
    "MemoryBank",
    "ModelContinuations",
    "Offload",
    "OnlineDistillation",
    "OnnxEncoder",
    "Packing",
    "ProgressiveSchedule",
    "RankedText",
    "SentenceDistance",
    "SentenceReordering",
    "WeightOnlyConfig",
    "WeightedSources",
    "ZeroShotAnswer",
    "adapt",
    "add_auxiliary_layer",
    "add_control_marks",
    "answer_questions",
    "build_control_prompt",
    "cond_log_probs",
    "drop_auxiliary_layer",
    "evaluate_ernie",
    "evaluate_task",
    "extract",
    "fill_blanks",
    "generate_answers",
    "label_permutation",
    "layerwise_lr_groups",
    "lm_loss",
    "load_adapter",
    "merging_into_integers",
    "mix_instructions",
    "one_chat_an_answer",
    "pair_scores",
    "permutation_classes",
    "permutation_label",
    "published_arguments",
    "register_default_targets",
    "rerank",
    "sentence_embeddings",
    "sentences_with",
    "set_offload",
    "split_sentences",
    "uie",
    "utc",
    "zero_shot",
]
