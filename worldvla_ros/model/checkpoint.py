# SPDX-License-Identifier: Apache-2.0
"""Load and save the transformer: Hugging Face layout, safetensors, nothing is ever unpickled.

A checkpoint is a folder with config.json and model.safetensors, or shards listed in
model.safetensors.index.json. The network is built without memory (meta device) and filled
tensor by tensor, so that 7B weights are never held twice.
"""

from collections.abc import Mapping
import hashlib
import json
from pathlib import Path, PurePosixPath
import shutil
from typing import Any, TypeVar

import torch
from torch import Tensor

from worldvla_ros.errors import CheckpointError
from worldvla_ros.model.transformer import Transformer, TransformerConfig
from worldvla_ros.model.weight_files import (
    fill_from_tensors,
    read_json,
    read_safetensors,
    tensor_shape,
    write_safetensors,
)
from worldvla_ros.tokens.vocab import Vocabulary
from worldvla_ros.whole_files import draft_folder

CONFIG_FILE = 'config.json'
WEIGHTS_FILE = 'model.safetensors'
INDEX_FILE = 'model.safetensors.index.json'
SHARD_FILES = 'model-*-of-*.safetensors'

_N = TypeVar('_N', int, float)

# Settings whose other values would need code that no released checkpoint uses.
_FIXED: dict[str, Any] = {'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False,
                          'swin_norm': False, 'rope_scaling': None}
# Present in Hugging Face's base checkpoints; images are tokenised outside the language model.
_IGNORED_PREFIXES = ('model.vqmodel.',)
_IGNORED_SUFFIXES = ('rotary_emb.inv_freq',)


def load_model(path: str | Path, subfolder: str | None = None, device: str = 'cpu',
               dtype: torch.dtype = torch.float32) -> Transformer:
    """Load a transformer from a local folder or, if there is none, from the Hugging Face Hub.

    Raises CheckpointError naming the file or key that is missing, truncated or misshapen.
    """
    folder = resolve_folder(path, subfolder)
    files = _weight_files(folder)
    config = _read_config(folder / CONFIG_FILE, files)
    with torch.device('meta'):
        model = Transformer(config)
    tensors = (item for file in files for item in read_safetensors(file))
    wanted = ((name, value) for name, value in tensors
              if not name.startswith(_IGNORED_PREFIXES)
              and not name.endswith(_IGNORED_SUFFIXES))
    tied = ('lm_head.weight',) if config.tie_word_embeddings else ()
    fill_from_tensors(model, wanted, folder, device, dtype, may_lack=tied)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.eval()


def save_model(model: Transformer, folder: Path, max_shard_bytes: int = 5_000_000_000) -> None:
    """Write config.json and the weights, in shards when they are larger than one may be.

    Weights that the folder holds already are whole until the new ones are written, and then go: an
    old model.safetensors would be loaded in place of new shards. Until all have taken their place
    nothing loads, rather than some of both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draft = draft_folder(folder, '.model-')
    try:
        _write_model(model, draft, max_shard_bytes)
        old = {file.name for pattern in (WEIGHTS_FILE, INDEX_FILE, SHARD_FILES)
               for file in folder.glob(pattern)}
        for name in (WEIGHTS_FILE, INDEX_FILE):
            (folder / name).unlink(missing_ok=True)
        for file in sorted(draft.iterdir()):  # the index behind the shards that it names
            file.replace(folder / file.name)
            old.discard(file.name)
        for name in old:
            (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_model(model: Transformer, folder: Path, max_shard_bytes: int) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(_config_entries(model.config), indent=2) + '\n')
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        del state['lm_head.weight']
    shards: list[dict[str, Tensor]] = [{}]
    for name, value in state.items():
        held = sum(tensor.nbytes for tensor in shards[-1].values())
        if shards[-1] and held + value.nbytes > max_shard_bytes:
            shards.append({})
        shards[-1][name] = value
    if len(shards) == 1:
        write_safetensors(state, folder / WEIGHTS_FILE)
        return
    names = [f'model-{i + 1:05}-of-{len(shards):05}.safetensors' for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_safetensors(shard, folder / name)
    index = {'metadata': {'total_size': sum(value.nbytes for value in state.values())},
             'weight_map': {key: name for name, shard in zip(names, shards, strict=True)
                            for key in shard}}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + '\n')


def pick_dtype(name: str | torch.dtype, device: str) -> torch.dtype:
    """Return a torch dtype; 'auto' is bfloat16 where the device multiplies it fast.

    That is every GPU, and a CPU with AMX tiles or AVX-512's bfloat16, as far as torch can tell;
    elsewhere float32.
    """
    if isinstance(name, torch.dtype):
        return name
    if name == 'auto':
        if not device.startswith('cpu'):
            return torch.bfloat16
        told: dict[str, Any] = getattr(torch.cpu, 'get_capabilities', dict)()  # newer torch
        fast = any(told.get(name, False) for name in ('amx_bf16', 'avx512_bf16'))
        return torch.bfloat16 if fast else torch.float32
    dtype = getattr(torch, name, None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise CheckpointError(f"dtype must be 'auto', 'float32', 'bfloat16' or 'float16', got "
                              f'{name!r}')
    return dtype


def fingerprint(folder: Path) -> str:
    """Return a short name of the weights: a hash over the files' headers and sizes.

    Hashing 14 GB would take a minute at each start, so the tensors themselves enter only through
    the first and last megabyte of each file.
    """
    digest = hashlib.sha256()
    for file in _weight_files(folder):
        with file.open('rb') as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, file.stat().st_size - (1 << 20)))
            digest.update(stream.read())
        digest.update(str(file.stat().st_size).encode())
    return f'sha256:{digest.hexdigest()[:12]}'


def resolve_folder(path: str | Path, subfolder: str | None = None, *,
                   with_weights: bool = True) -> Path:
    """Return the local folder of a checkpoint, downloading a Hub repository when asked for one.

    :param with_weights: False fetches the JSON files alone, to see what there is.
    """
    folder = Path(path)
    if subfolder is not None:
        subfolder = PurePosixPath(subfolder).as_posix()  # as the Hub's patterns spell it
    if not folder.is_dir():
        parts = str(path).split('/')
        if len(parts) != 2 or not all(parts) or str(path).startswith(('.', '~')):
            raise CheckpointError(f'no checkpoint folder {path}, and it is no Hub id of the '
                                  f'form owner/name')
        folder = _download(str(path), subfolder, with_weights)
    if subfolder is not None:
        folder = folder / subfolder
    if not folder.is_dir():
        raise CheckpointError(f'no folder {folder} in the checkpoint')
    return folder


def _download(hub_id: str, subfolder: str | None, with_weights: bool) -> Path:
    from huggingface_hub import snapshot_download  # only downloads need it
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    here = f'{subfolder}/' if subfolder not in (None, '.') else ''
    patterns = [f'{here}*.json']
    if with_weights:
        # A star stands for folders, too: those of other models must not come along. The released
        # repository keeps the tokenizers of all its sub-folders apart; the base model's lies
        # beside weights that are not needed.
        patterns += [here + WEIGHTS_FILE, here + SHARD_FILES, '*base_model/tokenizer.json',
                     *(f'*tokenizer/*.{suffix}'
                       for suffix in ('json', 'safetensors', 'yaml', 'ckpt'))]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f'no local folder {hub_id}, and the Hub does not give it: '
                              f'{error}') from error


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if (folder / INDEX_FILE).is_file():
        index = read_json(folder / INDEX_FILE).get('weight_map')
        if not isinstance(index, dict):
            raise CheckpointError(f'{folder / INDEX_FILE}: weight_map is {index!r}, expected the '
                                  'file of each key')
        names = sorted(set(index.values()))
        files = [folder / name for name in names]
        for file in files:
            if file.parent != folder or not file.is_file():
                raise CheckpointError(f'{folder / INDEX_FILE} names {file.name}, which is not '
                                      f'there')
        if files:
            return files
    pickles = [file.name for pattern in ('*.bin', '*.pt', '*.pth', '*.ckpt')
               for file in folder.glob(pattern)]
    hint = (f'; {pickles[0]} is a pickle and is not loaded, because that would run its code: '
            f'convert it to safetensors where you trust it' if pickles else '')
    raise CheckpointError(f'no {WEIGHTS_FILE} and no {INDEX_FILE} in {folder}; where a repository '
                          f'holds several models, `subfolder` names one{hint}')


def _read_config(path: Path, files: list[Path]) -> TransformerConfig:
    """Translate Hugging Face's config.json; `vocabulary` and `image_grid` are ours."""
    entries = read_json(path)
    for name, value in _FIXED.items():
        if entries.get(name, value) != value:
            raise CheckpointError(f'{path}: {name} is {entries[name]!r}, expected {value!r}')
    default = TransformerConfig()
    heads = _number(entries, 'num_attention_heads', default.num_heads, path)
    if entries.get('num_key_value_heads', heads) != heads:
        raise CheckpointError(f'{path}: num_key_value_heads is '
                              f'{entries["num_key_value_heads"]}, expected {heads}')
    if 'vocabulary' in entries:
        vocabulary = Vocabulary.from_dict(entries['vocabulary'])
    else:
        vocabulary = Vocabulary(size=_number(entries, 'vocab_size', Vocabulary.size, path))
    rope = _plain_rope(entries.get('rope_parameters') or {}, path)
    return TransformerConfig(
        hidden_size=_number(entries, 'hidden_size', default.hidden_size, path),
        intermediate_size=_number(entries, 'intermediate_size', default.intermediate_size, path),
        num_layers=_number(entries, 'num_hidden_layers', default.num_layers, path),
        num_heads=heads,
        rms_norm_eps=_number(entries, 'rms_norm_eps', default.rms_norm_eps, path),
        rope_theta=_number({**rope, **entries}, 'rope_theta', default.rope_theta, path),
        qk_norm_rows=_qk_norm_rows(files, heads),
        tie_word_embeddings=entries.get('tie_word_embeddings', False),
        image_grid=_image_grid(entries, path), vocabulary=vocabulary)


def _number(entries: Mapping[str, Any], name: str, default: _N, path: Path) -> _N:
    """Return a positive number of config.json, whole where its default is."""
    value = entries.get(name, default)
    kinds = (int, float) if isinstance(default, float) else (int,)
    if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0:
        raise CheckpointError(f'{path}: {name} is {value!r}, expected a positive number such as '
                              f'{default}')
    return type(default)(value)


def _image_grid(entries: dict[str, Any], path: Path) -> tuple[int, int] | None:
    grid = entries.get('image_grid')
    if grid is None:
        return None
    if not (isinstance(grid, list) and len(grid) == 2
            and all(isinstance(side, int) and side > 0 for side in grid)):
        raise CheckpointError(f'{path}: image_grid is {grid!r}, expected rows and columns of the '
                              'codes of an image, such as [12, 12]')
    rows, columns = grid
    return rows, columns


def _plain_rope(entries: Any, path: Path) -> dict[str, Any]:
    """Return rope_parameters of newer transformers; CheckpointError for scaled positions."""
    kind = entries.get('rope_type', 'default') if isinstance(entries, dict) else None
    if kind != 'default' or entries.keys() - {'rope_type', 'rope_theta'}:
        raise CheckpointError(f'{path}: rope_parameters is {entries!r}, expected rope_theta and '
                              f"rope_type 'default' alone")
    return entries


def _config_entries(config: TransformerConfig) -> dict[str, Any]:
    """Return config.json; inverse of `_read_config`."""
    return {'model_type': 'chameleon', 'vocab_size': config.vocabulary.size,
            'hidden_size': config.hidden_size, 'intermediate_size': config.intermediate_size,
            'num_hidden_layers': config.num_layers, 'num_attention_heads': config.num_heads,
            'num_key_value_heads': config.num_heads, 'rms_norm_eps': config.rms_norm_eps,
            'rope_theta': config.rope_theta, 'tie_word_embeddings': config.tie_word_embeddings,
            'bos_token_id': config.vocabulary.bos, 'eos_token_id': config.vocabulary.separator,
            **({} if config.image_grid is None else {'image_grid': list(config.image_grid)}),
            **_FIXED, 'vocabulary': config.vocabulary.to_dict()}


def _qk_norm_rows(files: list[Path], num_heads: int) -> int:
    """Return how many rows q_norm has: 1 in the released code, one per head in transformers."""
    name = 'model.layers.0.self_attn.q_norm.weight'
    shape = tensor_shape(files, name)
    if len(shape) != 2 or shape[0] < 1 or num_heads % shape[0]:
        raise CheckpointError(f'{files[0].parent}: {name} has shape {shape}, expected '
                              f'(rows, head_dim) with rows a divisor of {num_heads} heads')
    return shape[0]
