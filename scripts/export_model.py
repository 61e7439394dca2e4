"""Take a trained adapter out of a run: as a PEFT folder, a merged model, a program that asks it, or
to the hub. Without an option, show what the run has.

    python -m scripts.export_model results/seed=0
    python -m scripts.export_model results/seed=0 --stage grpo --adapter FOLDER --merged FOLDER
    python -m scripts.export_model results/seed=0 --generate-script inference.py --through tinker

Run it in the folder where snakemake ran.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tinsmith.config import Backend
from tinsmith.errors import TinsmithError
from tinsmith.files import write_text
from tinsmith.hub import Upload
from tinsmith.inference import inference_script, script_command
from tinsmith.model_card import adapter_card, base_reference, merged_card
from tinsmith.runs import BASE
from tinsmith.trained import TrainedStage, accuracy_text, read_evaluation, read_run, up_to


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = _parse(argv)
    try:
        if args.gguf is not None:
            raise TinsmithError(_gguf_advice(args))
        every = read_run(args.run)
        stages = up_to(every, args.stage)
        if not any((args.adapter, args.merged, args.generate_script, args.push)):
            _show(args.run, every)
            return 0
        _export(args, stages)
    except TinsmithError as error:
        print(f"export_model: {error}", file=sys.stderr)
        return 2
    return 0


def _export(args: argparse.Namespace, stages: list[TrainedStage]) -> None:
    last, upload = stages[-1], _upload(args)
    before = read_evaluation(args.run / BASE)
    base = base_reference(last.checkpoint.base_model, last.model_dir)
    for target in (args.adapter, args.merged):
        if target is not None and target.exists():
            raise TinsmithError(f"{target} is there already; name a new folder, or remove it")
    if args.adapter is not None:
        from tinsmith.export import write_adapter

        write_adapter(last.weights, args.adapter, base, adapter_card(stages, base, before))
        print(f"adapter of {last.name}: {args.adapter}")
    if args.merged is not None:
        from tinsmith.export import backend_precision, write_merged

        backend = Backend.model_validate(last.settings["backend"])
        card = merged_card(stages, base, before)
        precision = backend_precision(backend)
        write_merged(last.model_dir, last.weights, args.merged, precision, card)
        print(f"merged model of {last.name}: {args.merged}")
    if args.generate_script is not None:
        program = args.generate_script
        write_text(program, inference_script(last, base, args.through, program))
        print(f'now run: {script_command(last, args.through, program)} "your question"')
    if upload is not None:
        _push(upload, args.dry_run)


def _upload(args: argparse.Namespace) -> Upload | None:
    """What --push asks for, checked before the work."""
    if args.push is None:
        return None
    if not (args.merged or args.adapter):
        raise TinsmithError("--push uploads what --adapter or --merged writes; give one of them")
    upload = Upload(args.merged or args.adapter, args.push, is_private=not args.public)
    upload.check(args.dry_run)
    return upload


def _push(upload: Upload, is_dry_run: bool) -> None:
    """Upload what this call wrote, or tell what it would upload."""
    if is_dry_run:
        kind = "private" if upload.is_private else "public"
        print(f"would push to the {kind} repository {upload.name}:")
        for name, size_bytes in upload.files().items():
            print(f"  {name}  {size_bytes:,} bytes")
    else:
        print(f"pushed: {upload.push()}")


def _show(run: Path, stages: Sequence[TrainedStage]) -> None:
    checkpoint = stages[0].checkpoint
    print(f"{run}: {checkpoint.base_model}, LoRA rank {checkpoint.lora_rank}")
    before = read_evaluation(run / BASE)
    if before is not None:
        print(f"\n{BASE}\n  accuracy  {accuracy_text(before)}")
    for stage in stages:
        accuracy = accuracy_text(stage.evaluation) if stage.evaluation else "not evaluated"
        paths = stage.checkpoint.checkpoints
        print(f"\n{stage.name}: {stage.checkpoint.step} optimizer steps")
        for name, value in (("accuracy", accuracy), ("weights", stage.weights),
                            ("sampler", paths.sampler), ("state", paths.state)):  # fmt: skip
            print(f"  {name:<9} {value}")
    print("\n--adapter, --merged and --generate-script take the last stage, or --stage NAME")


def _gguf_advice(args: argparse.Namespace) -> str:
    merged = args.merged or "MERGED"
    return (
        "--gguf: llama.cpp's makers release its converter as a script and not as a package, so this"
        f" program does not convert; write the merged model (--merged {merged}), then run it:"
        f" python llama.cpp/convert_hf_to_gguf.py {merged} --outfile {args.gguf}"
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, help="results/<run>")
    add("--stage", help="(default: the last)")
    add("--adapter", type=Path, metavar="FOLDER", help="write the PEFT adapter with its card")
    add("--merged", type=Path, metavar="FOLDER", help="write the merged model with its card")
    add("--gguf", type=Path, metavar="FILE", help="says how to make one")
    add("--generate-script", type=Path, metavar="FILE", help="write a program that asks it")
    add("--through", choices=["peft", "tinker"], default="peft",
        help="whether that program loads files or asks the service (default: peft)")  # fmt: skip
    add("--push", metavar="OWNER/NAME", help="upload what was written to the hub (HF_TOKEN)")
    add("--public", action="store_true", help="let everybody see it (default: private)")
    add("--dry-run", action="store_true", help="with --push: tell what would be uploaded")
    args = parser.parse_args(argv)
    if args.push is None and (args.dry_run or args.public):
        parser.error("--dry-run and --public belong to --push")
    return args


if __name__ == "__main__":
    sys.exit(main())
