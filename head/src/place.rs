//! The head's place on the disk while it serves: its Unix socket, which is made again if somebody removes it, and its state
//! directory, without which a head must not go on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use cloudtik_protocol::files::Presence;
use cloudtik_protocol::transport::{listen_unix, serve_unix};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::settings::Settings;
use crate::store;

/// The head's Unix socket in its directory.
const SOCKET: &str = "admin.sock";
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Serves the socket and watches the place until `stop`.
pub struct Place {
    socket: PathBuf,
    presence: Arc<Presence>,
    router: Router,
    tasks: TaskTracker,
    stop: CancellationToken,
    gone: CancellationToken,
}

impl Place {
    /// Listens on the socket. The returned token is cancelled when the state directory was removed.
    pub fn serve(state: &Path, router: Router, tasks: &TaskTracker, stop: &CancellationToken) -> anyhow::Result<CancellationToken> {
        let presence = Presence::of(state, &[Settings::FILE, store::FILE]).with_context(|| format!("opening {}", state.display()))?;
        let gone = CancellationToken::new();
        let place = Self {
            socket: state.join(SOCKET),
            presence: Arc::new(presence),
            router,
            tasks: tasks.clone(),
            stop: stop.clone(),
            gone: gone.clone(),
        };
        place.listen().context("listening on the Unix socket")?;
        tasks.spawn(place.watch());
        Ok(gone)
    }

    fn listen(&self) -> std::io::Result<()> {
        let socket = listen_unix(&self.socket)?;
        self.tasks.spawn(serve_unix(socket, self.router.clone(), self.stop.clone()));
        Ok(())
    }

    async fn watch(self) {
        let (mut was_missing, mut last_error) = (false, String::new());
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let (presence, socket) = (self.presence.clone(), self.socket.clone());
            let look = tokio::task::spawn_blocking(move || (presence.is_gone(), is_missing(&socket)));
            let Ok((is_gone, is_missing)) = look.await else { continue };
            if is_gone {
                self.gone.cancel();
                return;
            }
            // Twice: whoever removes the whole directory may have begun with the socket.
            if is_missing && was_missing {
                match self.listen() {
                    Ok(()) => {
                        tracing::warn!("the Unix socket was removed; it is there again");
                        last_error.clear();
                    }
                    Err(error) => {
                        // The same again and again is one line: a moved directory stays moved.
                        let error = error.to_string();
                        if error != last_error {
                            tracing::error!("cannot create the Unix socket {} again: {error}", self.socket.display());
                            last_error = error;
                        }
                    }
                }
            }
            was_missing = is_missing;
        }
    }
}

fn is_missing(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
