"""The stages of the pipeline and the nouns they meet through: tables, manifests, shards, store, tracking."""
