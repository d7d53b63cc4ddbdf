"""Training retrieval: dual encoders and cross-encoders, as RocketQA has them, through sentence-transformers."""
