//! `submit`: what belongs to cloudtik and what to the job, options that a runtime declares, and files that it cannot run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use cloudtik_tests::Cluster;

/// Shows what a job is given, one word a line.
const MANIFEST: &str = r#"
[runtime]
name = "batch"
version = "1"
[services.queue]
role = "head"
command = ["/bin/sleep", "1000"]
[submit]
service = "queue"
command = ["/bin/sh", "-c", "printf '%s\\n' \"$@\"; echo \"STAGE=$STAGE\"; cat * | sort", "sh", "{{ job.options }}", "{{ job.run }}"]
[submit.files]
sh = ["run", "{{ job.file | shell }}"]
jar = ["java"]
[submit.options]
conf = { arguments = ["set", "{{ value }}"] }
env = { environment = true }
py-files = { arguments = ["with", "{{ values | join(';') }}"], together = true }
class = { arguments = ["main", "{{ value }}"], files = ["jar"] }
"#;

/// Takes any file, and no option.
const PLAIN: &str = r#"
[runtime]
name = "plain"
version = "1"
[services.queue]
role = "head"
command = ["/bin/sleep", "1000"]
[submit]
service = "queue"
command = ["/bin/echo"]
"#;

struct Jobs {
    cluster: Cluster,
    folder: PathBuf,
}

impl Jobs {
    fn new(name: &str) -> Self {
        let cluster = Cluster::new(name, "[runtimes.batch]\npath = \"./batch\"\n[runtimes.plain]\npath = \"./plain\"");
        let folder = cluster.file.parent().expect("it lies in a directory").to_owned();
        for (runtime, manifest) in [("batch", MANIFEST), ("plain", PLAIN)] {
            cluster.write_runtime(runtime, manifest);
        }
        Self { cluster, folder }
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.join(name);
        fs::write(&path, content).expect("writes");
        path.display().to_string()
    }
}

/// As a user who may not read what is another's, even if root runs the test.
fn as_ordinary(command: &Command) -> Command {
    let mut ordinary = Command::new("setpriv");
    if nix::unistd::geteuid().is_root() {
        ordinary.arg("--bounding-set=-dac_override,-dac_read_search");
    }
    ordinary.arg(command.get_program()).args(command.get_args());
    ordinary.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    ordinary
}

#[test]
fn a_job_that_is_no_file_of_this_machine_is_a_mistake_of_the_line() {
    let jobs = Jobs::new("nofile");
    let secret = jobs.file("secret.sh", "secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).expect("sets");
    let missing = jobs.folder.join("missing.sh").display().to_string();
    let dangling = jobs.folder.join("dangling.sh");
    std::os::unix::fs::symlink("nowhere", &dangling).expect("links");
    let (folder, dangling) = (jobs.folder.display().to_string(), dangling.display().to_string());
    let job = jobs.file("job.sh", "");
    for (file, why) in [
        (&folder, "it is a folder, not a file"),
        (&secret, "this user may not read it"),
        (&missing, "there is no such file on this machine"),
        (&dangling, "it is a symbolic link to a file that does not exist"),
    ] {
        for arguments in [vec!["submit", "nofile", file], vec!["submit", "--py-files", file, "nofile", &job]] {
            let ran = as_ordinary(&jobs.cluster.command(&arguments)).output().expect("runs");
            let said = String::from_utf8_lossy(&ran.stderr);
            assert!(ran.status.code() == Some(2) && said.contains(&format!("cannot submit {file}: {why}")), "{arguments:?}: {said}");
        }
    }
}

#[test]
fn everything_after_the_file_is_the_job_s_and_options_before_it_are_the_runtime_s() {
    let jobs = Jobs::new("given");
    jobs.cluster.up();
    let job = jobs.file("a job.sh", "of the job\n");
    for first in ["-o", "-h", "--runtime", "--help", "--", "--conf", "-ojson", "plain"] {
        let ran = jobs.cluster.run(&["submit", "given", "--runtime", "batch", &job, first, "json", "-x", "--", "--yes"]).ok();
        let lines: Vec<&str> = ran.out.lines().collect();
        assert_eq!((lines[0], &lines[2..7]), ("run", &[first, "json", "-x", "--", "--yes"][..]), "{ran:?}");
        assert!(lines[1].starts_with('\'') && lines[1].ends_with("/a job.sh'"), "{ran:?}");
    }
    let (one, two) = (jobs.file("m1.py", "of m1\n"), jobs.file("m2.py", "of m2\n"));
    let both = format!("{one},{two}");
    let options = ["--py-files", &both, "--conf", "a=1 2", "--env", "STAGE=x=y", "--conf", "b=\\"];
    let given = [&["submit", "-o", "json", "--runtime", "batch"][..], &options, &["given", &job, "last"]].concat();
    let ran = jobs.cluster.run(&given).ok();
    let document: serde_json::Value = serde_json::from_str(&ran.out).expect("-o before FILE is cloudtik's");
    let lines: Vec<&str> = document["stdout"].as_str().expect("it printed").lines().collect();
    assert_eq!(lines[..6], ["set", "a=1 2", "set", "b=\\", "with", lines[5]], "{lines:?}");
    let there: Vec<&str> = lines[5].split(';').collect();
    assert!(there[0].ends_with("/m1.py") && there[1].ends_with("/m2.py"), "{lines:?}");
    assert_eq!(lines[8..], ["last", "STAGE=x=y", "of m1", "of m2", "of the job"], "all files lie beside each other");
    let ran = fs::read_dir(jobs.cluster.node_home("head").join("jobs")).expect("jobs ran").flatten();
    let left = ran.filter(|job| job.path().join("1/work").exists()).count();
    assert_eq!(left, 0, "what was brought for a job goes with it");
}

#[test]
fn what_a_runtime_cannot_run_is_refused_before_it_is_sent() {
    let jobs = Jobs::new("refused");
    jobs.cluster.up();
    let (script, notebook, jar) = (jobs.file("job.sh", "x"), jobs.file("job.ipynb", "x"), jobs.file("job.jar", "x"));
    let refused = |arguments: &[&str], said: &str| {
        let ran = jobs.cluster.run(&[&["submit", "refused", "--runtime"][..], arguments].concat());
        assert!(ran.code == 5 && ran.err.contains(said) && !ran.err.contains("hint:") && ran.out.is_empty(), "{ran:?}");
        let all = [&["submit", "-o", "json", "refused", "--runtime"][..], arguments].concat();
        let ran = jobs.cluster.run(&all);
        let document: serde_json::Value = serde_json::from_str(&ran.err).expect("JSON");
        assert!(document["error"].as_str().is_some_and(|error| error.contains(said)), "{ran:?}");
    };
    refused(&["batch", &notebook], "batch cannot run job.ipynb: it runs files that end in .jar, .sh");
    refused(&["batch", "--class", "Main", &script], "--class is for files that end in .jar, not for job.sh");
    refused(&["batch", "--packages", "g:a:1", &jar], "batch takes no --packages for a job; it takes --class, --conf, --env, --py-files");
    refused(&["plain", "--conf", "a=b", &notebook], "plain takes no --conf for a job");
    let same = format!("{script},{script}");
    let ran = jobs.cluster.run(&["submit", "refused", "--runtime", "batch", "--py-files", &same, &jar]);
    assert!(ran.code != 0 && ran.err.contains("two files of the job are named job.sh"), "{ran:?}");
    for wrong in [["--conf", "a"], ["--env", "=b"]] {
        let ran = jobs.cluster.run(&["submit", "refused", "--runtime", "batch", wrong[0], wrong[1], &script]);
        assert!(ran.code == 2 && ran.err.contains("not NAME=VALUE"), "{ran:?}");
    }
    let unknown = jobs.cluster.run(&["submit", "refused", "--runtime", "flink", &script]);
    assert!(unknown.code == 5 && unknown.err.contains("error: this cluster has no runtime flink"), "{unknown:?}");
    let missing = jobs.cluster.run(&["submit", "refused", "--runtime", "batch", "--py-files", "/no/such.py", &script]);
    assert!(missing.code == 2 && missing.err.contains("cannot submit /no/such.py: there is no such file"), "{missing:?}");
    assert_eq!(jobs.cluster.run(&["jobs", "list", "refused", "-o", "json"]).ok().out, "[]\n", "nothing was sent");
    assert_eq!(jobs.cluster.run(&["submit", "refused", "--runtime", "plain", &notebook]).ok().out, "\n", "no endings: any file is taken");
}

#[test]
fn completions_offer_no_flag_of_cloudtik_after_the_file() {
    let cluster = Cluster::new("offered", "");
    let offered = |words: &[&str]| {
        let mut all = vec!["--", "cloudtik"];
        all.extend(words);
        let index = words.len().to_string();
        let mut command = cluster.command(&all);
        command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", index).env("_CLAP_IFS", "\n").current_dir(cloudtik_tests::repository());
        String::from_utf8(command.output().expect("runs").stdout).expect("UTF-8")
    };
    let before = offered(&["submit", "offered", "--"]);
    assert!(
        ["--class", "--conf", "--packages", "--py-files", "--env", "--runtime", "--detach", "--timeout"].iter().all(|f| before.contains(f)),
        "{before}"
    );
    for words in [&["submit", "offered", "job.py", "--"][..], &["submit", "--runtime", "spark", "offered", "job.py", "-o", "-"]] {
        let after = offered(words);
        assert!(!after.contains("--"), "{after}");
    }
    assert!(offered(&["submit", "offered", "job.py", "README"]).contains("README.md"), "files are offered to the job");
    let help = cluster.run(&["submit", "--help"]).ok().out;
    assert!(help.contains("Everything after FILE belongs to the job"), "{help}");
    assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
}
