"""Exports of label tools as rows for UIE and UTC: `python -m hf_glm_ernie label-data`."""

from .arguments import LabelDataArguments
from .convert import LabelDataReport, label_data
from .documents import AnnotationError, ClassifiedText, Document, Entity, Relation
from .uie_rows import LABEL_STUDIO_RULES, Rules, extraction_rows
from .utc_rows import utc_rows

__all__ = [
    "LABEL_STUDIO_RULES",
    "AnnotationError",
    "ClassifiedText",
    "Document",
    "Entity",
    "LabelDataArguments",
    "LabelDataReport",
    "Relation",
    "Rules",
    "extraction_rows",
    "label_data",
    "utc_rows",
]
