"""Parameter names and shapes of the public checkpoints, spelled out compactly and apart from the models' code."""

from __future__ import annotations

Layout = dict[str, tuple[int, ...]]

WIDTH, FFN, ENCODER_LAYERS, DECODER_LAYERS = 256, 2048, 6, 6


def detr_layout(blocks: tuple[int, int, int, int]) -> Layout:
    """DETR with a bottleneck ResNet of so many blocks a stage; DC5 models are laid out alike."""
    layout = _shared(blocks, num_logits=92, num_queries=100)
    for index in range(DECODER_LAYERS):
        layer = f"transformer.decoder.layers.{index}"
        layout |= _attention(f"{layer}.self_attn") | _attention(f"{layer}.multihead_attn")
    return layout


def with_pre_norm(detector: Layout) -> Layout:
    """The same with ``--pre_norm``: the encoder has a norm behind its layers, too."""
    return detector | _norm("transformer.encoder.norm", WIDTH)


def conditional_detr_layout(blocks: tuple[int, int, int, int]) -> Layout:
    """Conditional DETR with 300 queries."""
    layout = _shared(blocks, num_logits=91, num_queries=300) | _conditional_attention()
    decoder = "transformer.decoder"
    layout |= _linear(f"{decoder}.query_scale.layers.0", WIDTH, WIDTH)
    layout |= _linear(f"{decoder}.query_scale.layers.1", WIDTH, WIDTH)
    layout |= _linear(f"{decoder}.ref_point_head.layers.0", WIDTH, WIDTH)
    return layout | _linear(f"{decoder}.ref_point_head.layers.1", WIDTH, 2)


def dab_detr_layout(blocks: tuple[int, int, int, int]) -> Layout:
    """DAB-DETR with 300 queries; models/DAB_DETR of its public code."""
    layout = _shared(blocks, num_logits=91, num_queries=300) | _conditional_attention()
    del layout["query_embed.weight"]
    layout["refpoint_embed.weight"] = (300, 4)
    for part, num_layers in (("encoder", ENCODER_LAYERS), ("decoder", DECODER_LAYERS)):
        layout |= {f"transformer.{part}.layers.{index}.activation.weight": (1,) for index in range(num_layers)}
    mlps = {
        "encoder.query_scale": (WIDTH, WIDTH),
        "decoder.query_scale": (WIDTH, WIDTH),
        "decoder.ref_point_head": (2 * WIDTH, WIDTH),
        "decoder.ref_anchor_head": (WIDTH, 2),
    }
    for name, (inputs, outputs) in mlps.items():
        layout |= _linear(f"transformer.{name}.layers.0", inputs, WIDTH)
        layout |= _linear(f"transformer.{name}.layers.1", WIDTH, outputs)
    return layout | _box_head("transformer.decoder.bbox_embed")


def _conditional_attention() -> Layout:
    """The decoder's projections."""
    layout = {}
    for index in range(DECODER_LAYERS):
        layer = f"transformer.decoder.layers.{index}"
        names = ["sa_qcontent_proj", "sa_qpos_proj", "sa_kcontent_proj", "sa_kpos_proj", "sa_v_proj"]
        names += ["ca_qcontent_proj", "ca_kcontent_proj", "ca_kpos_proj", "ca_v_proj", "ca_qpos_sine_proj"]
        names += ["self_attn.out_proj", "cross_attn.out_proj"]
        if index == 0:
            names.append("ca_qpos_proj")
        for name in names:
            layout |= _linear(f"{layer}.{name}", WIDTH, WIDTH)
    return layout


def deformable_detr_layout(
    blocks: tuple[int, int, int, int], *, num_levels: int = 4, refine: bool = False, two_stage: bool = False
) -> Layout:
    """Deformable DETR with 300 queries, 8 heads and 4 points."""
    layout = _bottleneck_resnet("backbone.0.body", blocks)
    for index in range(ENCODER_LAYERS):
        layer = f"transformer.encoder.layers.{index}"
        layout |= _sampling(f"{layer}.self_attn", num_levels) | _feed_forward_and_norms(layer, 2, ffn=1024)
    for index in range(DECODER_LAYERS):
        layer = f"transformer.decoder.layers.{index}"
        layout |= _sampling(f"{layer}.cross_attn", num_levels) | _attention(f"{layer}.self_attn")
        layout |= _feed_forward_and_norms(layer, 3, ffn=1024)
    layout["transformer.level_embed"] = (num_levels, WIDTH)
    if two_stage:
        for name, width in (("enc_output", WIDTH), ("pos_trans", 2 * WIDTH)):
            layout |= _linear(f"transformer.{name}", width, width) | _norm(f"transformer.{name}_norm", width)
    else:
        layout |= _linear("transformer.reference_points", WIDTH, 2)
        layout["query_embed.weight"] = (300, 2 * WIDTH)
    for index in range(DECODER_LAYERS + two_stage):
        classes, boxes = _linear(f"class_embed.{index}", WIDTH, 91), _box_head(f"bbox_embed.{index}")
        layout |= classes | boxes
        if refine:
            layout |= {f"transformer.decoder.{name}": shape for name, shape in boxes.items()}
        if two_stage:
            layout |= {f"transformer.decoder.{name}": shape for name, shape in classes.items()}
    kernels = [(512, 1), (1024, 1), (2048, 1), (2048, 3)] if num_levels == 4 else [(2048, 1)]
    for index, (channels, side) in enumerate(kernels):
        layout[f"input_proj.{index}.0.weight"] = (WIDTH, channels, side, side)
        layout[f"input_proj.{index}.0.bias"] = (WIDTH,)
        layout |= _norm(f"input_proj.{index}.1", WIDTH)
    return layout


def _shared(blocks: tuple[int, int, int, int], *, num_logits: int, num_queries: int) -> Layout:
    """All but the decoder's attention."""
    layout = _bottleneck_resnet("backbone.0.body", blocks)
    for index in range(ENCODER_LAYERS):
        layer = f"transformer.encoder.layers.{index}"
        layout |= _attention(f"{layer}.self_attn") | _feed_forward_and_norms(layer, num_norms=2)
    for index in range(DECODER_LAYERS):
        layout |= _feed_forward_and_norms(f"transformer.decoder.layers.{index}", num_norms=3)
    layout |= _norm("transformer.decoder.norm", WIDTH)
    layout |= _linear("class_embed", WIDTH, num_logits)
    layout |= _box_head("bbox_embed")
    layout["query_embed.weight"] = (num_queries, WIDTH)
    layout["input_proj.weight"] = (WIDTH, 2048, 1, 1)
    layout["input_proj.bias"] = (WIDTH,)
    return layout


def _box_head(name: str) -> Layout:
    hidden = _linear(f"{name}.layers.0", WIDTH, WIDTH) | _linear(f"{name}.layers.1", WIDTH, WIDTH)
    return hidden | _linear(f"{name}.layers.2", WIDTH, 4)


def _sampling(name: str, num_levels: int) -> Layout:
    """Deformable attention of 8 heads and 4 points."""
    layout = _linear(f"{name}.sampling_offsets", WIDTH, 8 * num_levels * 4 * 2)
    layout |= _linear(f"{name}.attention_weights", WIDTH, 8 * num_levels * 4)
    return layout | _linear(f"{name}.value_proj", WIDTH, WIDTH) | _linear(f"{name}.output_proj", WIDTH, WIDTH)


def _linear(name: str, inputs: int, outputs: int) -> Layout:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Layout:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _attention(name: str) -> Layout:
    projections = {f"{name}.in_proj_weight": (3 * WIDTH, WIDTH), f"{name}.in_proj_bias": (3 * WIDTH,)}
    return projections | _linear(f"{name}.out_proj", WIDTH, WIDTH)


def _feed_forward_and_norms(layer: str, num_norms: int, ffn: int = FFN) -> Layout:
    layout = _linear(f"{layer}.linear1", WIDTH, ffn) | _linear(f"{layer}.linear2", ffn, WIDTH)
    for index in range(num_norms):
        layout |= _norm(f"{layer}.norm{index + 1}", WIDTH)
    return layout


def _frozen_norm(name: str, width: int) -> Layout:
    return {f"{name}.{kind}": (width,) for kind in ("weight", "bias", "running_mean", "running_var")}


def _bottleneck_resnet(body: str, blocks: tuple[int, int, int, int]) -> Layout:
    layout = {f"{body}.conv1.weight": (64, 3, 7, 7)} | _frozen_norm(f"{body}.bn1", 64)
    inputs = 64
    for stage, num_blocks in enumerate(blocks):
        width, outputs = 64 * 2**stage, 256 * 2**stage
        for block in range(num_blocks):
            name = f"{body}.layer{stage + 1}.{block}"
            layout[f"{name}.conv1.weight"] = (width, inputs, 1, 1)
            layout[f"{name}.conv2.weight"] = (width, width, 3, 3)
            layout[f"{name}.conv3.weight"] = (outputs, width, 1, 1)
            layout |= _frozen_norm(f"{name}.bn1", width) | _frozen_norm(f"{name}.bn2", width)
            layout |= _frozen_norm(f"{name}.bn3", outputs)
            if block == 0:
                layout[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                layout |= _frozen_norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return layout


def detreg_layout(detector: Layout) -> Layout:
    """DETReg's pretraining: a detector for COCO's classes, and the embedding head."""
    return detector | _linear("feature_embed.layers.0", WIDTH, WIDTH) | _linear("feature_embed.layers.1", WIDTH, 512)


def training_layout(detector: Layout, num_features: int, head: str) -> Layout:
    """What both pretrainings in the code of Siamese DETR share; the backbone's maps have so many channels together."""
    layout = {}
    for name, shape in detector.items():
        if name == "query_embed.weight":
            layout[name] = (shape[0], WIDTH)
            if shape[1] > WIDTH:
                layout["transformer.tgt_embed.weight"] = (shape[0], WIDTH)
        elif not name.startswith(("class_embed", "bbox_embed")):
            layout[name.replace("backbone.0.body.", "backbone.")] = shape
    heads = _box_head("bbox_embed") | _linear("class_embed", WIDTH, 3)
    heads |= _linear("feature_align.layers.0", WIDTH, WIDTH) | _linear("feature_align.layers.1", WIDTH, num_features)
    layout |= {f"{head}.{name}": shape for name, shape in heads.items()} | {f"{head}.criterion.empty_weight": (3,)}
    return layout | _linear("patch2query", num_features, WIDTH)


def siamese_training_layout(detector: Layout, num_features: int) -> Layout:
    """The authors' pretraining of a detector."""
    layout = training_layout(detector, num_features, "pred_head")
    pooled = WIDTH if num_features == 2048 else 3 * WIDTH
    for head, inputs, norms in (("projector", pooled, (1, 4, 7)), ("predictor", WIDTH, (1,))):
        for index in norms:
            layout |= _linear(f"enc_head.0.{head}.mlp.{index - 1}", inputs if index == 1 else WIDTH, WIDTH)
            layout |= _batch_norm(f"enc_head.0.{head}.mlp.{index}", WIDTH)
    return layout | _linear("enc_head.0.predictor.mlp.3", WIDTH, WIDTH)


def swav_layout() -> Layout:
    """SwAV's ResNet-50 with a projection head and prototypes."""
    layout = {name.removeprefix("."): shape for name, shape in _bottleneck_resnet("", R50).items()}
    layout |= {name.replace("running_var", "num_batches_tracked"): () for name in layout if "running_var" in name}
    layout |= _linear("projection_head.0", 2048, 2048) | _batch_norm("projection_head.1", 2048)
    layout |= _linear("projection_head.3", 2048, 128) | {"prototypes.weight": (3000, 128)}
    return {f"module.{name}": shape for name, shape in layout.items()}


def _batch_norm(name: str, width: int) -> Layout:
    return _frozen_norm(name, width) | {f"{name}.num_batches_tracked": ()}


R50, R101 = (3, 4, 6, 3), (3, 4, 23, 3)
PUBLIC_LAYOUTS = {
    "detr-r50": detr_layout(R50),
    "detr-r50-dc5": detr_layout(R50),
    "detr-r50-pre-norm": with_pre_norm(detr_layout(R50)),
    "conditional-detr-r50-pre-norm": with_pre_norm(conditional_detr_layout(R50)),
    "detr-r101": detr_layout(R101),
    "conditional-detr-r50": conditional_detr_layout(R50),
    "dab-detr-r50": dab_detr_layout(R50),
    "deformable-detr-r50": deformable_detr_layout(R50),
    "deformable-detr-r50-single-scale": deformable_detr_layout(R50, num_levels=1),
    "deformable-detr-r50-refine": deformable_detr_layout(R50, refine=True),
    "deformable-detr-r50-refine-two-stage": deformable_detr_layout(R50, refine=True, two_stage=True),
}
DETR_R50 = PUBLIC_LAYOUTS["detr-r50"]
DEFORMABLE, SINGLE_SCALE = PUBLIC_LAYOUTS["deformable-detr-r50"], PUBLIC_LAYOUTS["deformable-detr-r50-single-scale"]
CONDITIONAL_100 = PUBLIC_LAYOUTS["conditional-detr-r50"] | {"query_embed.weight": (100, WIDTH)}
PRETRAINING_LAYOUTS = {
    "up-detr-r50-pretrain": DETR_R50 | _linear("class_embed", WIDTH, 3) | _linear("patch2query", 2048, WIDTH),
    "detreg-detr-r50-pretrain": detreg_layout(DETR_R50),
    "detreg-deformable-detr-r50-pretrain": detreg_layout(DEFORMABLE),
    "siamese-detr-vanilla-r50-training": siamese_training_layout(DETR_R50, 2048),
    "siamese-detr-conditional-r50-training": siamese_training_layout(CONDITIONAL_100, 2048),
    "siamese-detr-deformable-single-scale-r50-training": siamese_training_layout(SINGLE_SCALE, 2048),
    "siamese-detr-deformable-multi-scale-r50-training": siamese_training_layout(DEFORMABLE, 512 + 1024 + 2048),
}
PRE_NORM_PRETRAINING_LAYOUTS = {
    "up-detr-r50-pre-norm-pretrain": with_pre_norm(PRETRAINING_LAYOUTS["up-detr-r50-pretrain"]),
    "detreg-detr-r50-pre-norm-pretrain": with_pre_norm(PRETRAINING_LAYOUTS["detreg-detr-r50-pretrain"]),
}
"""As the commands that UP-DETR and DETReg publish leave them."""
UP_DETR_TRAINING_LAYOUTS = {
    "up-detr-vanilla-r50-training": training_layout(DETR_R50, 2048, "head"),
    "up-detr-conditional-r50-training": training_layout(CONDITIONAL_100, 2048, "head"),
    "up-detr-deformable-multi-scale-r50-training": training_layout(DEFORMABLE, 512 + 1024 + 2048, "head"),
}
"""UP-DETR as the authors of Siamese DETR pretrain it."""
SWAV_LAYOUT = swav_layout()
