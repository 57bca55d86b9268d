//! All domain-separation labels, in one table.
//!
//! A label never changes its meaning: a new use gets a new label. In a hash or derivation, a label that ends in a zero
//! byte precedes other bytes. No label is the beginning of another, so two uses never hash the same input.

/// Key-check value of a master key version.
pub(crate) const KCV: &[u8] = b"quorate/v1/kcv\0";
/// Root for encryption.
pub(crate) const ROOT_ENC: &[u8] = b"quorate/v1/root/enc\0";
/// Root for the salt of deterministic encryption.
pub(crate) const ROOT_DET: &[u8] = b"quorate/v1/root/det\0";
/// Root for message authentication codes.
pub(crate) const ROOT_MAC: &[u8] = b"quorate/v1/root/mac\0";
/// Root for Ed25519 signatures.
pub(crate) const ROOT_SIGN: &[u8] = b"quorate/v1/root/sign\0";

/// Hash of an epoch's committee.
pub(crate) const COMMITTEE: &[u8] = b"quorate/v1/committee\0";
/// HPKE info of the encapsulation of one batch to one holder.
pub(crate) const SHARE: &[u8] = b"quorate/v1/share\0";
/// HPKE exporter context of the key that seals the shares of one batch to one holder.
pub(crate) const SHARE_KEK: &[u8] = b"quorate/v1/share-kek";
/// Commitment to one share.
pub(crate) const SHARE_COMMIT: &[u8] = b"quorate/v1/share-commit\0";
/// Associated data of one sealed share.
pub(crate) const SHARE_AAD: &[u8] = b"quorate/v1/share-aad\0";

/// HPKE info of one piece of a lock.
pub(crate) const LOCK: &[u8] = b"quorate/v1/lock\0";
/// Key of the bundle.
pub(crate) const BUNDLE: &[u8] = b"quorate/v1/bundle\0";

/// Header and context of a ciphertext.
pub(crate) const CONTEXT: &[u8] = b"quorate/v1/ctx\0";
/// Key, nonce and commitment of a ciphertext of suite 1 (C2SP chunked-encryption).
pub(crate) const CHUNKED_SUITE_1: &[u8] = b"c2sp.org/chunked-encryption@v1+AEAD_CHACHA20_POLY1305\0";

/// Signature of an order.
pub(crate) const ORDER: &[u8] = b"quorate/v1/order\0";

/// The hash of an invitation's secret, which the state stores in place of the secret.
pub const INVITE: &[u8] = b"quorate/v1/invite\0";
/// Proof that a joiner holds the secret of an invitation.
pub const JOIN: &[u8] = b"quorate/v1/join\0";
/// Proof that the inviter holds the same secret.
pub const JOIN_OK: &[u8] = b"quorate/v1/join-ok\0";

/// TLS exporter label of a join connection.
pub const EXPORTER_JOIN: &[u8] = b"EXPORTER-quorate-join";
/// TLS exporter label of the key that seals a piece of a lock in a reply. The exporter context is the hash of the
/// request.
pub const EXPORTER_LOCK: &[u8] = b"EXPORTER-quorate-lock";
/// TLS exporter label of the key that seals shares in transit. The exporter context is the cluster id.
pub const EXPORTER_SHARE: &[u8] = b"EXPORTER-quorate-share";

/// Key of QUIC's stateless resets (RFC 9000 section 10.3), derived from a node's boot seed.
pub const QUIC_RESET: &[u8] = b"quorate/v1/quic-reset\0";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_label_begins_another() {
        let all = [
            KCV,
            ROOT_ENC,
            ROOT_DET,
            ROOT_MAC,
            ROOT_SIGN,
            COMMITTEE,
            SHARE,
            SHARE_KEK,
            SHARE_COMMIT,
            SHARE_AAD,
            LOCK,
            BUNDLE,
            CONTEXT,
            CHUNKED_SUITE_1,
            ORDER,
            INVITE,
            JOIN,
            JOIN_OK,
            EXPORTER_JOIN,
            EXPORTER_LOCK,
            EXPORTER_SHARE,
            QUIC_RESET,
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all.iter().enumerate().all(|(j, other)| i == j || !other.starts_with(one)));
        }
    }
}
