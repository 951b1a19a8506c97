//! Whom TLS trusts: the system's authorities, the built-in list where the system has none.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;

/// Returns the trusted authorities; read once, and again after [`forget`].
pub(crate) fn roots() -> Arc<RootCertStore> {
    let mut kept = kept();
    if let Some(roots) = &*kept {
        return roots.clone();
    }
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(added, ignored, "loaded the system's trusted roots");
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    kept.insert(Arc::new(roots)).clone()
}

/// Forgets the authorities: after a refusal the operator may add one, and the next attempt looks again.
pub(crate) fn forget() {
    kept().take();
}

/// Returns the one crypto provider.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .clone()
}

fn kept() -> MutexGuard<'static, Option<Arc<RootCertStore>>> {
    static ROOTS: Mutex<Option<Arc<RootCertStore>>> = Mutex::new(None);
    ROOTS.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_always_somebody_to_trust_and_forgetting_reads_anew() {
        let first = roots();
        assert!(!first.is_empty());
        forget();
        let second = roots();
        assert!(!Arc::ptr_eq(&first, &second));
        assert_eq!(first.len(), second.len());
    }
}
