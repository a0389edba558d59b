#!/usr/bin/env bash
# Our recipe for short pretraining, not the paper's: a folder of photographs -> your own labelled images; one GPU or CPU.
#   PHOTOS=... BACKBONE=... DATA=... bash configs/fast.sh conditional|deformable
# PHOTOS: folder of images without labels. BACKBONE: timm's weights of EfficientNet-Lite0. DATA: root of a data set in
# COCO's layout. Regions are EdgeBoxes.
set -euo pipefail
detr="${1:-}"
case "$detr" in
    conditional) flags=() ;;
    deformable) flags=(--num_feature_levels 1 --num_queries 100) ;;
    *) echo "usage: $0 conditional|deformable" >&2; exit 2 ;;
esac
python tools/make_proposals.py --method edgebox --data_path "$PHOTOS" --output_dir out/fast_proposals
python main_pretrain.py --recipe fast --dataset_file imagefolder --data_path "$PHOTOS" --detr "$detr" "${flags[@]}" \
    --backbone timm:tf_efficientnet_lite0 --feature_stride 16 --backbone_weights "$BACKBONE" \
    --enc_layers 3 --dec_layers 3 --dim_feedforward 1024 --scales 208 224 240 --max_size 320 \
    --proposals edgebox --proposal_dir out/fast_proposals --batch_size 16 --max_steps 1000 --val_fraction 0.05 \
    --resume auto --output_dir "out/fast_$detr"
python main_finetune.py --recipe paper --dataset_file coco --data_path "$DATA" \
    --pretrain "out/fast_$detr/checkpoint.pth" \
    --scales 208 224 240 --max_size 320 --batch_size 8 --lr 2e-4 --lr_backbone 0 --max_steps 1000 \
    --resume auto --output_dir "out/fast_${detr}_finetuned"
