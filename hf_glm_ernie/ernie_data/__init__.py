"""Exports of label tools as rows for UIE and UTC: `python -m hf_glm_ernie label-data`."""

from .documents import AnnotationError, ClassifiedText, Document, Entity, Relation
from .uie_rows import LABEL_STUDIO_RULES, Rules, extraction_rows
from .utc_rows import utc_rows

__all__ = [
    "LABEL_STUDIO_RULES",
    "AnnotationError",
    "ClassifiedText",
    "Document",
    "Entity",
    "Relation",
    "Rules",
    "extraction_rows",
    "utc_rows",
]
