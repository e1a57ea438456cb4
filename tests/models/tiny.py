"""Tiny models of every causal language model that transformers can build."""

from __future__ import annotations

from typing import Any

VOCABULARY = 97
# ruff: noqa: E501
# Numbers by the names that configurations give them; a configuration takes those that it has.
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "d_model": 16, "n_embd": 16, "dim": 16, "embed_dim": 16, "emb_dim": 16, "d_embed": 16,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2, "encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4, "encoder_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 32, "ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_ffn_dim": 32,
    "d_ff": 32, "n_inner": 32, "d_kv": 4, "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "moe_num_experts": 4, "moe_k": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4,
    "qk_head_dim": 8, "state_size": 4, "mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_expand": 2,
    "embedding_size": 16, "word_embed_proj_dim": 16, "rotary_dim": 4, "index_n_heads": 2, "index_head_dim": 4, "index_topk": 4,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 3, "cls_token_id": 4, "mask_token_id": 5,
    "decoder_start_token_id": 1, "image_token_id": 6, "video_token_id": 7, "audio_token_id": 8, "sliding_window": 8,
    "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 4, "lru_width": 16, "time_step_rank": 2, "num_kv_shared_layers": 0,
}  # fmt: skip
DROPOUTS = ("dropout", "attention_dropout", "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "resid_pdrop",
            "embd_pdrop", "attn_pdrop", "activation_dropout", "dropout_rate", "classifier_dropout", "residual_dropout", "embedding_dropout",
            "embedding_dropout_prob", "emb_dropout", "embed_dropout", "router_jitter_noise", "input_jitter_noise", "layerdrop", "decoder_layerdrop", "expert_dropout_prob")  # fmt: skip

# What single architectures ask for beside, by their model_type.
MORE: dict[str, dict[str, Any]] = {
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "mamba2": {"num_heads": 4, "head_dim": 8, "expand": 2, "n_groups": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "local"], "local_attention_probs_dropout_prob": 0.0, "local_attn_chunk_length": 9},
    "xmod": {"default_language": "en_XX", "is_decoder": True},
    "zamba": {"num_hidden_layers": 3, "layer_types": ["mamba", "hybrid", "mamba"], "attention_head_dim": 8},
    "zaya": {"num_experts_per_tok": 1},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "dots1": {"first_k_dense_replace": 1, "n_shared_experts": 1, "n_routed_experts": 4},
    "moshi": {"audio_vocab_size": 32},
    "t5": {"decoder_start_token_id": 1},
    "longt5": {"decoder_start_token_id": 1},
    "switch_transformers": {"decoder_start_token_id": 1},
    "esmc": {"num_key_value_heads": 4},
}  # fmt: skip


def small(config: Any) -> dict[str, Any]:
    """Return small numbers for what a configuration has."""

    def has(name: str) -> bool:
        try:
            return hasattr(config, name) and not isinstance(getattr(type(config), name, None), property)
        except Exception:  # what differs from layer to layer has no one value
            return False

    numbers = {name: value for name, value in SMALL.items() if has(name)} | {
        name: 0.0 for name in DROPOUTS if has(name)
    }
    if has("qk_rope_head_dim"):
        numbers["num_key_value_heads"] = 4  # latent attention shares none
    if has("use_cache"):
        numbers["use_cache"] = False
    return numbers | MORE.get(config.model_type, {})


def tiny(kind: Any, default: Any) -> Any:
    """Make a tiny model of a class with a configuration of the kind that ``default`` is, one of several configurations too."""
    import torch

    text = default.get_text_config(decoder=True)
    wanted = getattr(kind, "config_class", None)
    if text is not default and wanted is not None and isinstance(text, wanted):
        default = text
    numbers = small(default)
    for name in default.sub_configs:
        inner = getattr(default, name, None)
        if inner is not None:
            numbers[name] = small(inner)
    config = type(default)(**numbers)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > 3e7:
        raise MemoryError(f"{size / 1e6:.0f} million parameters")
    return kind(config).train()
