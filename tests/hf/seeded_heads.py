"""Blocks that predict a further token (MTP) in models of `transformers`: their tensors, and what they give."""

import torch

# names in the checkpoint: what those of the block begin with, then what it has besides
HEADS = {
    "layers": (
        "model.layers.{n}.",
        "model.layers.{n}.eh_proj",
        "model.layers.{n}.enorm",
        "model.layers.{n}.hnorm",
        "model.layers.{n}.shared_head.norm",
    ),
    "mtp": ("mtp.layers.0.", "mtp.fc", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden", "mtp.norm"),
}


def with_head(kind, shapes, config):
    """Names and shapes of a model and of its head: a block as the last layer, and what makes the block's input.

    Args:
        kind: of `HEADS`.
        shapes: of the model, by name.
        config: as in `config.json`.
    """
    n, n_embd = config["num_hidden_layers"], config["hidden_size"]
    block, eh_proj, *norms = (name.format(n=n) for name in HEADS[kind])
    last = f"model.layers.{n - 1}."
    more = {block + name.removeprefix(last): s for name, s in shapes.items() if name.startswith(last)}
    more[f"{eh_proj}.weight"] = (n_embd, 2 * n_embd)
    more |= {f"{norm}.weight": (n_embd,) for norm in norms}
    return shapes | more


def expect_head(model_class, config):
    """Lets the class take a head's tensors as what it leaves out: of itself it knows published models' layers only."""
    n = config["num_hidden_layers"]
    model_class._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{n}\..*", r"^mtp.*"]


def head_logits(model, ids):
    """Of the head, for all tokens but the first: [len(ids) - 1, n_vocab]."""
    from transformers.modeling_layers import MtpModel

    config = model.config
    config.num_mtp_layers = 1
    if getattr(config, "layer_types", None):
        config.mtp_layer_types = ["full_attention"]
    if getattr(config, "mlp_layer_types", None):
        config.mtp_mlp_layer_types = ["sparse"]
    head = MtpModel.from_pretrained(model).eval()
    tokens = torch.tensor(ids)[None]
    with torch.no_grad():
        hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
        positions = torch.arange(1, len(ids))[None]
        out = head.forward_layer(0, hidden[:, :-1], positions, None, input_ids=tokens[:, 1:])
        return head._project_to_logits(out)[0].float().numpy()
