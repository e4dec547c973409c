//! What the rules of mixes know of a model.

use ikq_gguf::{Metadata, Tensor, Value};

/// Facts of a model, from its metadata and the names of its tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `general.architecture`.
    pub arch: String,
    pub n_layers: u32,
    /// Experts per layer; 0 in dense models.
    pub n_experts: u32,
    /// Query heads per key head of the first layer, rounded down.
    pub gqa: u32,
    pub n_vocab: u32,
    /// Tensors that hold attention values, alone or with queries and keys.
    pub n_attn_v: u32,
    /// The token embedding serves as output matrix.
    pub is_tied: bool,
    /// `"8B"` or `"70B"` where ik_llama.cpp's loader would say so; rules know no other classes.
    pub size: Option<&'static str>,
}

impl Facts {
    /// Reads the facts of a model.
    pub fn new(metadata: &Metadata, tensors: &[Tensor]) -> Facts {
        let arch =
            metadata.get("general.architecture").and_then(Value::as_str).unwrap_or_default().to_string();
        let number = |key: &str| {
            let value = metadata.get(&format!("{arch}.{key}"))?;
            // some models have a number per layer
            let n = value.as_u64().or_else(|| first_number(value))?;
            u32::try_from(n).ok()
        };
        let n_heads = number("attention.head_count").unwrap_or(0);
        let n_kv_heads = number("attention.head_count_kv").unwrap_or(n_heads);
        let n_tokens =
            metadata.get("tokenizer.ggml.tokens").and_then(Value::as_array).map(|a| a.len() as u32);
        let attn_v = |t: &&Tensor| t.name.contains("attn_v.weight") || t.name.contains("attn_qkv.weight");
        let n_embd = number("embedding_length").unwrap_or(0);
        let mut facts = Facts {
            n_layers: number("block_count").unwrap_or(0),
            n_experts: number("expert_count").unwrap_or(0),
            gqa: n_heads.checked_div(n_kv_heads).unwrap_or(0),
            n_vocab: number("vocab_size").or(n_tokens).unwrap_or(0),
            n_attn_v: tensors.iter().filter(attn_v).count() as u32,
            is_tied: !tensors.iter().any(|t| t.name == "output.weight"),
            size: None,
            arch: arch.clone(),
        };
        facts.size = facts.size_class(n_embd, n_heads == n_kv_heads);
        facts
    }

    /// The loader's class of size, by architecture and number of layers.
    fn size_class(&self, n_embd: u32, all_heads: bool) -> Option<&'static str> {
        match (self.arch.as_str(), self.n_layers) {
            ("llama", _) if self.n_experts == 8 => None,
            ("llama", 32) => (self.n_vocab != 49_152 && self.n_vocab >= 40_000).then_some("8B"),
            ("llama", 36) => Some("8B"),
            ("llama", 80) => (!all_heads).then_some("70B"),
            ("deci" | "qwen2" | "qwen2vl" | "olmo", 80) => Some("70B"),
            ("qwen3" | "qwen3vl", 36) => (n_embd != 2560).then_some("8B"),
            ("cohere2", 32) | ("mistral3", 34) => Some("8B"),
            _ => None,
        }
    }
}

/// The first element of an array of numbers.
fn first_number(value: &Value) -> Option<u64> {
    value.as_array()?.to_u64s()?.first().copied()
}
