//! `status -w`: every change of a cluster, until it is taken down.

use std::io;
use std::time::{Duration, Instant};

use cloudtik_model::status::Status;

use crate::cli::Target;
use crate::client::{Client, is_refused};
use crate::failure::Failure;
use crate::output::{Printer, takes_codes};
use crate::pause::Pause;
use crate::show::print_whole;

/// How often ages are drawn anew on a terminal.
const REDRAW: Duration = Duration::from_secs(1);
/// Moves to the upper left and clears what is below.
const CLEAR: &[u8] = b"\x1b[H\x1b[J";

pub async fn status(printer: &Printer, cluster: Target<'_>) -> Result<(), Failure> {
    let mut client = Client::connect(cluster).await?;
    let mut view = View { printer, redraws: !printer.is_json() && takes_codes(&io::stdout()), is_first: true };
    let mut pause = Pause::default();
    loop {
        if follow(&client, &mut view).await? {
            pause = Pause::default();
        }
        // The stream ended: the head was restarted, or the cluster taken down.
        pause.wait().await;
        client = match client.reconnect().await {
            Ok(client) => client,
            Err(_) if !client.place.exists() => {
                printer.say(&format!("{} was taken down", client.place.name));
                return Ok(());
            }
            Err(failure) => return Err(failure),
        };
    }
}

/// Shows statuses until the head's stream of them ends; says whether there was any.
async fn follow(client: &Client, view: &mut View<'_>) -> Result<bool, Failure> {
    let mut is_shown = false;
    let mut statuses = match client.watch().await {
        Ok(statuses) => statuses,
        Err(status) if is_refused(&status) => return Err(status.into()),
        Err(_) => return Ok(false),
    };
    let mut pause = REDRAW;
    loop {
        let status = tokio::select! {
            next = statuses.message() => match next {
                Ok(Some(status)) => status,
                Err(status) if is_refused(&status) => return Err(status.into()),
                Ok(None) | Err(_) => return Ok(is_shown),
            },
            () = tokio::time::sleep(pause), if view.redraws => {
                let begun = Instant::now();
                let Ok(status) = client.status().await else { return Ok(is_shown) };
                // Of a large cluster it takes a while, and is asked for less often.
                pause = REDRAW.max(begun.elapsed() * 10);
                status
            }
        };
        is_shown = true;
        view.show(&status);
    }
}

/// What is shown, and how: drawn over on a terminal, one below the other elsewhere.
struct View<'a> {
    printer: &'a Printer,
    redraws: bool,
    is_first: bool,
}

impl View<'_> {
    fn show(&mut self, status: &Status) {
        if self.printer.is_json() {
            return self.printer.json_line(status);
        }
        if self.redraws {
            self.printer.raw(CLEAR);
        } else if !self.is_first {
            self.printer.line("");
        }
        self.is_first = false;
        print_whole(self.printer, status);
    }
}
