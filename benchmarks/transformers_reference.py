# SPDX-License-Identifier: Apache-2.0
"""The public implementation's way of decoding, rebuilt on transformers' own Chameleon.

`generate()` emits one token per pass over a growing cache and the whole vocabulary. Before each
pass the action-chunk mask of the whole sequence is made anew, and its last row is used, as the
public class does.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, ChameleonConfig, ChameleonForConditionalGeneration

from worldvla_ros.model.attention_mask import action_chunk_mask
from worldvla_ros.model.transformer import Transformer
from worldvla_ros.tokens.vocab import Vocabulary


class MaskedChameleon(ChameleonForConditionalGeneration):
    """transformers' Chameleon under the action-chunk mask."""

    vocabulary: Vocabulary  # of the model whose weights these are
    masked = True  # else as any causal model, without what the mask costs
    _seen: Tensor  # int64 [S], all tokens of the sequence so far

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None,
                past_key_values: Cache | None = None, **options: Any) -> Any:
        """Run one pass under the last row of the published mask."""
        if not self.masked:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask,
                                   past_key_values=past_key_values, **options)
        cached = 0 if past_key_values is None else past_key_values.get_seq_length()
        self._seen = input_ids[0] if cached == 0 else torch.cat((self._seen, input_ids[0]))
        rows = input_ids.shape[1]
        row = action_chunk_mask(self._seen, self.vocabulary)[-1]
        causal = torch.ones(rows, len(row), dtype=torch.bool, device=row.device).tril(cached)
        return super().forward(input_ids=input_ids, attention_mask=(row & causal)[None, None],
                               past_key_values=past_key_values, **options)


def reference_of(model: Transformer) -> MaskedChameleon:
    """Return transformers' Chameleon on the very weights of a model (they are shared)."""
    ours = model.config
    config = ChameleonConfig(
        vocab_size=ours.vocabulary.size, hidden_size=ours.hidden_size,
        intermediate_size=ours.intermediate_size, num_hidden_layers=ours.num_layers,
        num_attention_heads=ours.num_heads, num_key_value_heads=ours.num_heads,
        max_position_embeddings=8192, rms_norm_eps=ours.rms_norm_eps,
        vq_config={'embed_dim': 8, 'num_embeddings': 16, 'latent_channels': 8,
                   'base_channels': 32, 'channel_multiplier': [1], 'num_res_blocks': 1},
        vocabulary_map={'<image>': ours.vocabulary.size - 1})
    with torch.device('meta'):
        reference = MaskedChameleon(config)
    state = {name: value.repeat_interleave(ours.num_heads // len(value), 0)
             if '.q_norm.' in name or '.k_norm.' in name else value
             for name, value in model.state_dict().items()}
    missing, unexpected = reference.load_state_dict(state, strict=False, assign=True)
    if unexpected or any('vqmodel' not in name for name in missing):
        raise RuntimeError(f'transformers names other weights: {missing}, {unexpected}')
    reference.model.rotary_emb = type(reference.model.rotary_emb)(config).to(model.device)
    reference.vocabulary = ours.vocabulary
    return reference.eval()


@torch.inference_mode()
def reference_chunk(reference: MaskedChameleon, prompt_ids: list[int], max_new_tokens: int, *,
                    masked: bool = True) -> Tensor:
    """Return the greedy tokens after a prompt, the stop token included.

    :param masked: under the action-chunk mask; else the tokens are others, and only time counts.
    """
    reference.masked = masked
    ids = torch.tensor([prompt_ids], device=reference.lm_head.weight.device)
    separator = reference.vocabulary.separator
    out = reference.generate(  # type: ignore[misc]  # its self is annotated as another class
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=True,
        max_new_tokens=max_new_tokens, eos_token_id=separator, pad_token_id=separator)
    return out[0, len(prompt_ids):].cpu()
