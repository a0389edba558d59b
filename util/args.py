"""The command line of both scripts: argument groups, each written once.

A flag whose best value depends on detector, data set or checkpoint has the default None here; what it
becomes is decided in :mod:`util.recipes`.
"""

from __future__ import annotations

import argparse


def add_data_arguments(parser: argparse.ArgumentParser, dataset_files: list[str]) -> argparse._ArgumentGroup:
    """Where the images are and how large they become."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset_file", choices=dataset_files, help=f"default: {dataset_files[0]}")
    group.add_argument("--data_path", help="root folder of the data set")
    group.add_argument("--scales", type=int, nargs="+", help="short sides in pixels, one drawn an image")
    group.add_argument("--max_size", type=int, help="limit of the long side in pixels")
    return group


def add_detector_arguments(parser: argparse.ArgumentParser, detectors: list[str]) -> None:
    """The detector. What a checkpoint was trained with need not be typed again."""
    group = parser.add_argument_group("detector (defaults: the checkpoint's, else those of the paper)")
    group.add_argument("--detr", choices=detectors, help="default: conditional")
    group.add_argument(
        "--backbone", help="resnet18|34|50|101, or timm:NAME for most convolutional ones; default: resnet50"
    )
    group.add_argument(
        "--backbone_weights",
        metavar="FILE",
        help="start the backbone from SwAV, MoCo, torchvision or timm weights, or that of any detector; "
        "without it, it starts random",
    )
    group.add_argument(
        "--dilation",
        action="store_true",
        help="stride 16 instead of 32 in the last stage (DC5): finer, four times the tokens",
    )
    group.add_argument(
        "--feature_stride",
        type=int,
        choices=[16, 32],
        help="timm backbones: the map to detect on; default: 32",
    )
    group.add_argument("--position_embedding", choices=["sine", "learned"], help="default: sine")
    group.add_argument("--enc_layers", type=int, help="default: 6")
    group.add_argument("--dec_layers", type=int, help="default: 6")
    group.add_argument("--hidden_dim", type=int, help="width of the Transformer; default: 256")
    group.add_argument("--nheads", type=int, help="default: 8")
    group.add_argument("--dim_feedforward", type=int, help="default: 2048 (deformable: 1024)")
    group.add_argument("--num_queries", type=int, help="most objects an image can have; default: 100 (deformable: 300)")
    group.add_argument(
        "--num_feature_levels",
        type=int,
        choices=[1, 4],
        help="deformable: 4 sees maps of strides 8 to 64, which small objects need; 1 is faster; default: 4",
    )
    group.add_argument("--enc_n_points", type=int, help="deformable: points a head looks at on each map; default: 4")
    group.add_argument("--dec_n_points", type=int, help="the same in the decoder; default: 4")
    group.add_argument(
        "--with_box_refine",
        action="store_true",
        help="deformable: every decoder layer starts from the box that the one before predicts",
    )
    group.add_argument(
        "--two_stage",
        action="store_true",
        help="deformable with --with_box_refine: queries are the encoder's best guesses; cannot be pretrained",
    )
    group.add_argument("--dropout", type=float, default=0.1)


def add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    """Costs of the matching and weights of the losses, spelled as in DETR."""
    group = parser.add_argument_group("matching costs and loss weights")
    group.add_argument("--set_cost_class", type=float, help="default: 1 with softmax, 2 with focal loss")
    group.add_argument("--set_cost_bbox", type=float, default=5.0)
    group.add_argument("--set_cost_giou", type=float, default=2.0)
    group.add_argument("--cls_loss_coef", type=float, help="default: 1 with softmax, 2 with focal loss")
    group.add_argument("--bbox_loss_coef", type=float, default=5.0)
    group.add_argument("--giou_loss_coef", type=float, default=2.0)
    group.add_argument("--eos_coef", type=float, help="softmax: weight of the no-object class; default: 0.1")
    group.add_argument("--focal_alpha", type=float, help="focal loss: weight of the positives; default: 0.25")


def add_optimizer_arguments(parser: argparse.ArgumentParser, *, batch_size: int) -> argparse._ArgumentGroup:
    """Optimizer and schedule; a schedule counts either epochs or steps."""
    group = parser.add_argument_group("optimization")
    group.add_argument("--lr", type=float, help="default: 1e-4 (finetuning deformable: 2e-4)")
    group.add_argument("--weight_decay", type=float, default=1e-4)
    group.add_argument("--clip_max_norm", type=float, default=0.1, help="gradient norm limit; 0 switches it off")
    group.add_argument("--batch_size", type=int, help=f"a process; default: {batch_size}")
    group.add_argument(
        "--accum_steps",
        type=int,
        default=1,
        help="batches a step, to save memory; each is normalised on its own",
    )
    group.add_argument("--epochs", type=int, help="length of the schedule in epochs")
    group.add_argument(
        "--lr_drop",
        type=int,
        help="epoch after which lr is multiplied by 0.1; default: after 2/3 of them (finetuning but vanilla: 4/5)",
    )
    group.add_argument("--max_steps", type=int, help="length of the schedule in steps, instead of --epochs")
    group.add_argument(
        "--lr_drop_step", type=int, help="step after which lr is multiplied by 0.1; default: after the same share"
    )
    group.add_argument("--amp", choices=["none", "bf16", "fp16"], help="mixed precision; default: none")
    return group


def add_run_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Where it runs, what it writes, how it goes on."""
    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", default="outputs", help="receives args.json, log.txt and checkpoints")
    group.add_argument("--resume", metavar="auto|FILE", help="go on from a checkpoint; auto: the newest, if any")
    group.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    group.add_argument("--seed", type=int, default=42)
    group.add_argument("--num_workers", type=int, default=2, help="loading processes for each training process")
    group.add_argument("--save_every_epochs", type=int, default=1, help="0: only by steps and at the end")
    group.add_argument("--save_every_steps", type=int, default=0, help="0: only by epochs and at the end")
    group.add_argument("--keep_checkpoints", type=int, default=2, help="older checkpoints are deleted")
    group.add_argument("--log_every", type=int, default=20, help="steps between two lines of log.txt")
    group.add_argument("--tensorboard", action="store_true", help="write the log's numbers for tensorboard, too")
    return group


def add_pretext_arguments(parser: argparse.ArgumentParser, pretexts: list[str]) -> None:
    """The pretext task; most flags are of some methods only (:data:`util.check_args.FLAGS_OF_METHODS`)."""
    group = parser.add_argument_group("pretext task")
    group.add_argument("--method", choices=pretexts, help=f"default: the checkpoint's, else {pretexts[0]}")
    group.add_argument(
        "--num_regions", type=int, help="siamese, updetr: regions an image, must divide --num_queries; default: 10"
    )
    group.add_argument("--view_iou", type=float, help="siamese: least overlap of the two views (tau); default: 0.5")
    group.add_argument(
        "--augment_device",
        choices=["cpu", "cuda"],
        help="siamese: where colours change and pictures are blurred: in the workers, or with --device cuda in the "
        "training process, which spares the workers; default: cpu",
    )
    group.add_argument(
        "--query_jitter", type=float, help="siamese: corner noise of query regions, of a side; default: 0.1"
    )
    group.add_argument(
        "--patch_dropout", type=float, help="updetr: share of queries that are not told their patch; default: 0.1"
    )
    group.add_argument(
        "--shuffle_queries",
        action="store_true",
        help="updetr: draw in every step which learned queries go with which patch",
    )
    group.add_argument(
        "--num_proposals", type=int, help="detreg: the best so many proposals are the image's objects; default: 30"
    )
    group.add_argument("--no_feature_loss", action="store_true", help="ablation: no regional discrimination")
    group.add_argument("--no_global_loss", action="store_true", help="siamese, ablation: no global discrimination")
    group.add_argument(
        "--feature_loss_coef", type=float, help="default: siamese by detector and data set 3 or 5, else 1"
    )
    group.add_argument("--global_loss_coef", type=float, help="siamese; default: 0.3 on COCO, else 10")


def pretrain_parser(dataset_files: list[str], detectors: list[str], pretexts: list[str]) -> argparse.ArgumentParser:
    """The parser of main_pretrain.py."""
    parser = argparse.ArgumentParser(
        "main_pretrain.py", description="Pretrain the Transformer without labels.", allow_abbrev=False
    )
    data = add_data_arguments(parser, dataset_files)
    data.add_argument("--voc_train", nargs="+", metavar="YEAR:SET", help="VOC image sets; default: 07+12 trainval")
    data.add_argument(
        "--proposals",
        metavar="{random,edgebox,selective_search,...}",
        default="random",
        help="regions of interest; all but random are read from --proposal_dir, and named as what made them",
    )
    data.add_argument("--proposal_dir", help="folder of proposals made for this data set")
    data.add_argument("--crop_size", type=int, default=128, help="side of the region crops in pixels")
    add_detector_arguments(parser, detectors)
    add_pretext_arguments(parser, pretexts)
    add_loss_arguments(parser)
    add_optimizer_arguments(parser, batch_size=8)
    add_run_arguments(parser)
    return parser


def finetune_parser(dataset_files: list[str], detectors: list[str]) -> argparse.ArgumentParser:
    """The parser of main_finetune.py."""
    parser = argparse.ArgumentParser(
        "main_finetune.py", description="Train or evaluate a detector on boxes.", allow_abbrev=False
    )
    data = add_data_arguments(parser, dataset_files)
    for split in ("train", "val"):
        data.add_argument(f"--{split}_ann", metavar="FILE", help="COCO-format annotations, any place")
        data.add_argument(f"--{split}_images", metavar="DIR", help="the images they name")
    data.add_argument("--voc_train", nargs="+", metavar="YEAR:SET", help="VOC image sets; default: 07+12 trainval")
    data.add_argument("--voc_val", nargs="+", metavar="YEAR:SET", help="default: 2007:test")
    data.add_argument(
        "--train_fraction", type=float, metavar="F", help="train on a share of the labelled images, drawn by --seed"
    )
    data.add_argument(
        "--train_images_per_class", type=int, metavar="K", help="train on K images for each class, drawn by --seed"
    )
    data.add_argument("--eval_size", type=int, help="short side at evaluation; default: the largest of --scales")
    data.add_argument("--eval_max_size", type=int, help="long side at evaluation; default: --max_size")
    add_detector_arguments(parser, detectors)
    add_loss_arguments(parser)
    optimization = add_optimizer_arguments(parser, batch_size=2)
    optimization.add_argument(
        "--lr_backbone",
        type=float,
        help="0 freezes it; default: 5e-5 after pretraining, 1e-5 from scratch (deformable: 2e-5)",
    )
    optimization.add_argument(
        "--lr_linear_proj_mult",
        type=float,
        help="deformable: reference points and sampling offsets learn at --lr times this; default: 0.1",
    )
    run = add_run_arguments(parser)
    run.add_argument(
        "--pretrain",
        metavar="FILE",
        help="start from this checkpoint's detector, also of other projects (see the README); its class head is kept "
        "if the categories are the same",
    )
    run.add_argument(
        "--new_parts",
        nargs="+",
        metavar="NAME",
        help="parts of --pretrain's detector that start anew all the same: bbox_embed, transformer.encoder, ...",
    )
    run.add_argument(
        "--eval", action="store_true", help="evaluate the checkpoint of --resume, also of other projects, and stop"
    )
    run.add_argument("--eval_every", type=int, default=1, help="epochs between two evaluations; 0: at the end only")
    return parser
