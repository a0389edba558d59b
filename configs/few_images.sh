#!/usr/bin/env bash
# Finetuning on 1, 2, 5 and 10 % of COCO's labelled images: bash configs/few_images.sh PRETRAINED_CHECKPOINT
# COCO: root of the data set. The same --seed draws the same images for every checkpoint. Every fraction is trained for
# as many steps as 50 epochs on 10 % have. One GPU.
set -euo pipefail
for fraction in 0.01 0.02 0.05 0.1; do
    python main_finetune.py --dataset_file coco --data_path "$COCO" --pretrain "$1" --train_fraction "$fraction" \
        --seed 1 --batch_size 8 --max_steps 73000 --num_workers 8 --resume auto --output_dir "out/coco_$fraction"
done
