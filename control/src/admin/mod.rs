//! Administration: HTTP and JSON on a unix socket in the state folder, and the commands that use it.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;

use crate::service::Control;
use peer::Author;

mod api;
pub mod cli;
mod client;
mod peer;

/// The admin socket, bound. Who can open the file is an administrator.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

/// The admin socket cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the admin socket {path}: {source}")]
pub struct SocketError {
    path: PathBuf,
    source: io::Error,
}

impl Socket {
    /// Binds it with mode 0600. The caller holds the lock on the database, so a socket that is
    /// there was left behind.
    ///
    /// # Errors
    ///
    /// The system says no.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError {
            path: path.to_owned(),
            source,
        };
        // Bound under another name, so that it never stands there with wider rights.
        let aside = path.with_extension("new");
        for stale in [path, aside.as_path()] {
            match std::fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                Ok(()) | Err(_) => {}
            }
        }
        let listener = UnixListener::bind(&aside).map_err(failed)?;
        std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&aside, path))
            .map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Serves administrators until dropped.
    pub async fn serve(&self, control: Arc<Control>) {
        let router = api::router(control);
        loop {
            let Ok((socket, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let router = router.clone().layer(Extension(Author::of(&socket)));
            let service = TowerToHyperService::new(router);
            tokio::spawn(async move {
                let http = hyper::server::conn::http1::Builder::new();
                if let Err(error) = http.serve_connection(TokioIo::new(socket), service).await {
                    tracing::debug!(%error, "admin connection ended");
                }
            });
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Left behind it would do no harm: the next server removes it.
        let _ = std::fs::remove_file(&self.path);
    }
}
