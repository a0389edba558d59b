#!/usr/bin/env bash
# The paper's ablations of the pretext tasks, on ImageNet with Conditional DETR: bash configs/ablations.sh NAME
set -euo pipefail
regions=(--proposals edgebox --proposal_dir "${PROPOSALS:-}")
flags=()
case "${1:-}" in
    random_boxes) regions=(--proposals random) ;;
    detection_only) flags=(--no_feature_loss --no_global_loss) ;;
    no_feature) flags=(--no_feature_loss) ;;
    no_global) flags=(--no_global_loss) ;;
    view_iou_0.3) flags=(--view_iou 0.3) ;;
    view_iou_0.7) flags=(--view_iou 0.7) ;;
    *) echo "usage: $0 random_boxes|detection_only|no_feature|no_global|view_iou_0.3|view_iou_0.7" >&2; exit 2 ;;
esac
python -m torch.distributed.run --nproc_per_node=8 main_pretrain.py \
    --dataset_file imagefolder --data_path "$IMAGENET/train" --detr conditional --backbone resnet50 \
    --backbone_weights "$SWAV" --batch_size 32 --num_workers 8 --amp bf16 --resume auto \
    "${regions[@]}" "${flags[@]}" --output_dir "out/ablation_$1"
