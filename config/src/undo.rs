//! A cluster's file with what nodes run by an earlier one.

use toml::Table;

/// The table of what nodes run.
const RUNTIMES: &str = "runtimes";

/// The text of `file` with the runtimes of `earlier` in place of its own; everything else, such as limits and node types, stays as
/// it is. Where nothing else differs, it is the text of `earlier`, and where no runtime does, that of `file`.
///
/// # Errors
/// One of them is no TOML.
pub fn with_runtimes_of(file: &str, earlier: &str) -> Result<String, toml::de::Error> {
    let (mut now, mut then): (Table, Table) = (toml::from_str(file)?, toml::from_str(earlier)?);
    let (runs, ran) = (now.remove(RUNTIMES), then.remove(RUNTIMES));
    if runs == ran {
        return Ok(file.to_owned());
    }
    if now == then {
        return Ok(earlier.to_owned());
    }
    if let Some(ran) = ran {
        now.insert(RUNTIMES.to_owned(), ran);
    }
    Ok(format!("# As `cloudtik rollout undo` put it together: what nodes run is that of an earlier revision.\n{now}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLIER: &str = "max_workers = 4\n[cluster]\nname = \"demo\"\n[runtimes.web]\nversion = \"1\" # it worked\n";

    #[test]
    fn only_what_nodes_run_goes_back() {
        let newer = "max_workers = 9 # more\nidle_after = \"1m\"\n[cluster]\nname = \"demo\"\n[workers.big]\nmin = 2\n[runtimes.web]\nversion = \"2\"\n[runtimes.web.properties]\nx = \"y\"\n[[scaling]]\nname = \"load\"\n";
        let text = with_runtimes_of(newer, EARLIER).expect("TOML");
        let read = |text: &str| toml::from_str::<Table>(text).expect("TOML");
        let (mut expected, result) = (read(newer), read(&text));
        expected.insert("runtimes".to_owned(), read(EARLIER)["runtimes"].clone());
        assert_eq!(result, expected, "{text}");
        // A runtime that came goes, and one that went comes back.
        let without = newer.split("[runtimes.web]").next().expect("a part");
        assert!(!read(&with_runtimes_of(newer, without).expect("TOML")).contains_key("runtimes"));
        assert_eq!(read(&with_runtimes_of(without, EARLIER).expect("TOML"))["runtimes"], read(EARLIER)["runtimes"]);
    }

    #[test]
    fn a_text_stays_as_it_was_written_where_it_can() {
        let newer = EARLIER.replace("version = \"1\" # it worked", "version = \"2\"");
        assert_eq!(with_runtimes_of(&newer, EARLIER).expect("TOML"), EARLIER);
        let more = EARLIER.replace("max_workers = 4", "max_workers = 9");
        assert_eq!(with_runtimes_of(&more, EARLIER).expect("TOML"), more);
    }
}
