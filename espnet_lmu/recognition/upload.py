"""Stage 15: publish a packed model on the Hugging Face hub, with a model card.

The repository holds the packed files as they are, so that both ``espnet_lmu.load_model("USER/NAME")`` and ESPnet's
``from_pretrained`` find them.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from espnet_lmu.data.files import command_line, read_yaml
from espnet_lmu.errors import UserError
from espnet_lmu.recognition.model_files import (
    CONFIG,
    HUB_ID,
    META,
    RESULTS,
    check_unpacked,
    dump_yaml,
    unpack,
)


def model_card(folder: Path, hub_id: str, language: str | None) -> str:
    """README.md of a model on the hub, from its configuration and results.

    Args:
        folder: files of a packed model.
        hub_id: ``USER/NAME``.
        language: what the hub calls a language: its ISO 639-1 code.
    """
    config, meta = read_yaml(folder / CONFIG), read_yaml(folder / META)
    header = {
        "library_name": "espnet",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["espnet", "audio", "automatic-speech-recognition", "legendre-memory-unit", "ctc"],
    }
    if language:
        header["language"] = [language]
    units = {"bpe": "BPE pieces", "char": "characters", "word": "words"}[config["token_type"]]
    model = {key: config[key] for key in ("encoder", "encoder_conf", "frontend", "frontend_conf") if config.get(key)}
    results = ""
    if (folder / RESULTS).exists():
        # as sections of the card, two levels below its title
        tables = re.sub(r"^(#{1,4}) ", r"#\1 ", (folder / RESULTS).read_text(encoding="utf-8"), flags=re.MULTILINE)
        results = f"## Results\n\n{tables.strip()}\n\n"
    return f"""---
{dump_yaml(header)}---

# {hub_id.split("/")[1]}

Speech recognition by ESPnet {meta["espnet"]} with espnet_lmu {meta["espnet_lmu"]}: `encoder: {config["encoder"]}` under
CTC, {len(config["token_list"])} tokens ({units}), audio at {meta["rate"]} Hz (other rates are resampled).

## Use

With espnet_lmu and huggingface_hub installed:

```sh
espnet-lmu transcribe {hub_id} recording.flac
```

```python
import espnet_lmu

recognizer = espnet_lmu.load_model("{hub_id}")
print(recognizer.transcribe("recording.flac").text)
```

{results}## Model

```yaml
{dump_yaml(model)}```

`{CONFIG}` has the whole configuration, `{META}` the versions it was trained with and the files' checksums.
"""


def upload(packed: Path, hub_id: str, language: str | None) -> str:
    """Publish a packed model, in a repository that is made unless it exists.

    Returns:
        the address of the model's page.

    Raises:
        UserError: no huggingface_hub, no token, no such packed model, or the hub refuses.
    """
    if not HUB_ID.fullmatch(hub_id):
        raise UserError(f"--hf_repo {hub_id}: give USER/NAME")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HTTPError
    except ImportError:
        raise UserError("uploading needs huggingface_hub: pip install huggingface_hub") from None
    if huggingface_hub.get_token() is None:
        raise UserError("no token of the Hugging Face hub: run `hf auth login`, or set HF_TOKEN")
    if not packed.is_file():
        raise UserError(f"{packed}: no such file; run stage 14 first")
    with tempfile.TemporaryDirectory(prefix="espnet_lmu.") as temporary:
        folder = Path(temporary)
        unpack(packed, folder)
        check_unpacked(folder, str(packed))
        (folder / "README.md").write_text(model_card(folder, hub_id, language), encoding="utf-8")
        hub = huggingface_hub.HfApi()
        try:
            page = hub.create_repo(hub_id, exist_ok=True)
            hub.upload_folder(repo_id=hub_id, folder_path=folder, commit_message=f"Upload {packed.stem}")
        except (HTTPError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{hub_id}: the Hugging Face hub does not take it: {reason}") from None
    return str(page)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m espnet_lmu.recognition.upload", description=__doc__)
    parser.add_argument("--language", metavar="CODE", help="language of the model, e.g. en")
    parser.add_argument("packed", metavar="FILE", type=Path, help="packed model (stage 14)")
    parser.add_argument("hf_repo", metavar="USER/NAME", help="name of the model on the hub")
    args = parser.parse_args()
    print(f"uploaded: {upload(args.packed, args.hf_repo, args.language)}")


if __name__ == "__main__":
    command_line(main)
