//! Roles of matrices that have an option of their own (`--attn-v-type` and its like).

use ikq_formats::QuantType;

/// A role, in the order in which names are tested for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    AttnV,
    AttnK,
    AttnQkv,
    AttnQ,
    AttnOutput,
    FfnDown,
    FfnGate,
    FfnUp,
}

/// Role, its name in options, the part of a tensor's name that tells it.
const ROLES: &[(Role, &str, &str)] = &[
    (Role::AttnV, "attn_v", "attn_v.weight"),
    (Role::AttnK, "attn_k", "attn_k"),
    // before attn_q, which is a part of it
    (Role::AttnQkv, "attn_qkv", "attn_qkv.weight"),
    (Role::AttnQ, "attn_q", "attn_q"),
    (Role::AttnOutput, "attn_output", "attn_output.weight"),
    (Role::FfnDown, "ffn_down", "ffn_down"),
    (Role::FfnGate, "ffn_gate", "ffn_gate"),
    (Role::FfnUp, "ffn_up", "ffn_up"),
];

impl Role {
    /// All names of roles.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ROLES.iter().map(|r| r.1)
    }

    /// By its name in options, such as `ffn_down`.
    pub fn parse(name: &str) -> Option<Role> {
        ROLES.iter().find(|r| r.1 == name).map(|r| r.0)
    }

    /// The role of a tensor. The router is none of them: it has its own option.
    pub fn of(tensor: &str) -> Option<Role> {
        let is_router = tensor.contains("ffn_gate_inp.weight");
        ROLES.iter().find(|r| tensor.contains(r.2) && !is_router).map(|r| r.0)
    }
}

/// Types given by role.
#[derive(Clone, Debug, Default)]
pub struct RoleTypes(Vec<(Role, QuantType)>);

impl RoleTypes {
    /// Gives a role a type; the last one counts.
    pub fn set(&mut self, role: Role, ty: QuantType) {
        self.0.push((role, ty));
    }

    /// The type of a tensor's role and the option that gave it.
    pub fn find(&self, tensor: &str) -> Option<(QuantType, String)> {
        let role = Role::of(tensor)?;
        let (_, ty) = self.0.iter().rev().find(|(r, _)| *r == role)?;
        let name = ROLES.iter().find(|r| r.0 == role)?.1;
        Some((*ty, format!("--{}-type", name.replace('_', "-"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_roles() {
        let of = |name: &str| Role::of(&format!("blk.3.{name}.weight"));
        assert_eq!(of("attn_qkv"), Some(Role::AttnQkv));
        assert_eq!(of("attn_q_a"), Some(Role::AttnQ));
        assert_eq!(of("attn_kv_b"), Some(Role::AttnK));
        assert_eq!(of("ffn_gate_up_exps"), Some(Role::FfnGate));
        assert_eq!(of("ffn_down_shexp"), Some(Role::FfnDown));
        assert_eq!(of("ffn_gate_inp"), None);
        assert_eq!(of("attn_norm"), None);
    }

    #[test]
    fn the_last_type_of_a_role_counts() {
        let mut types = RoleTypes::default();
        types.set(Role::FfnUp, QuantType::Q4_0);
        types.set(Role::FfnUp, QuantType::Q8_0);
        let found = types.find("blk.0.ffn_up_exps.weight");
        assert_eq!(found, Some((QuantType::Q8_0, "--ffn-up-type".to_string())));
        assert_eq!(types.find("blk.0.ffn_down.weight"), None);
    }
}
