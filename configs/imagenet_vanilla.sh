#!/usr/bin/env bash
# ImageNet -> COCO, vanilla DETR with 100 queries: 42.0 AP in the paper (39.7 without pretraining).
# IMAGENET, COCO: roots of the data sets. SWAV: SwAV's ResNet-50 (800 epochs). PROPOSALS: EdgeBoxes of the
# unlabelled images. 8 GPUs; bf16 is our choice.
set -euo pipefail
python -m torch.distributed.run --nproc_per_node=8 main_pretrain.py \
    --dataset_file imagefolder --data_path "$IMAGENET/train" --detr vanilla --backbone resnet50 \
    --backbone_weights "$SWAV" --proposals edgebox --proposal_dir "$PROPOSALS" --batch_size 32 --num_workers 8 --amp bf16 --resume auto \
    --output_dir out/imagenet_vanilla
python -m torch.distributed.run --nproc_per_node=8 main_finetune.py \
    --dataset_file coco --data_path "$COCO" --pretrain out/imagenet_vanilla/checkpoint.pth \
    --batch_size 2 --num_workers 8 --resume auto --output_dir out/imagenet_vanilla_coco
