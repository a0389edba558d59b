"""Names in transformers that several detectors share: (theirs, ours), for :func:`compile_rules`."""

SHARED = [
    ("model.encoder.layers.*.self_attn_layer_norm.", "transformer.encoder.layers.*.norm1."),
    ("model.encoder.layers.*.final_layer_norm.", "transformer.encoder.layers.*.norm2."),
    ("model.encoder.layers.*.fc1.", "transformer.encoder.layers.*.linear1."),
    ("model.encoder.layers.*.fc2.", "transformer.encoder.layers.*.linear2."),
    ("model.encoder.layers.*.self_attn.", "transformer.encoder.layers.*.self_attn."),
    ("model.decoder.layers.*.final_layer_norm.", "transformer.decoder.layers.*.norm3."),
    ("model.decoder.layers.*.fc1.", "transformer.decoder.layers.*.linear1."),
    ("model.decoder.layers.*.fc2.", "transformer.decoder.layers.*.linear2."),
    ("model.decoder.layers.*.self_attn.", "transformer.decoder.layers.*.self_attn."),
    ("model.query_position_embeddings.", "query_embed."),
    ("model.position_embedding.row_embeddings.", "backbone.1.row_embed."),
    ("model.position_embedding.column_embeddings.", "backbone.1.col_embed."),
]
"""Of all DETRs."""

SINGLE_SCALE = [
    *SHARED,
    ("model.decoder.layers.*.self_attn_layer_norm.", "transformer.decoder.layers.*.norm1."),
    ("model.decoder.layers.*.encoder_attn_layer_norm.", "transformer.decoder.layers.*.norm2."),
    ("model.decoder.layernorm.", "transformer.decoder.norm."),
    ("model.input_projection.", "input_proj."),
    ("class_labels_classifier.", "class_embed."),
    ("bbox_predictor.", "bbox_embed."),
]
"""Of DETRs with one feature map."""
