//! What `--help` says below the options of commands that have no room of their own. Lines have at most [`COLUMNS`] characters.

/// Columns that help is wrapped at.
pub const COLUMNS: usize = 80;

pub const EXIT_CODES: &str = "\
Exit status:
  0  success                      4  not found
  1  failure                      5  refused, by a limit or by the provider
  2  usage                        6  timeout, or not healthy
  3  invalid configuration        7  not authorised

Get started:
  cloudtik init
  cloudtik up cluster.toml
  cloudtik status

Use \"cloudtik COMMAND --help\" for more about a command.";

pub const UP: &str = "\
Examples:
  # Create the cluster, or apply its file, and wait until it is ready
  cloudtik up cluster.toml

  # Only show what would be created, changed or destroyed
  cloudtik up cluster.toml --plan

  # Read the file from standard input
  cat cluster.toml | cloudtik up - --yes";

pub const DOWN: &str = "\
Examples:
  # Delete the cluster \"demo\", after a question
  cloudtik down demo

  # Delete it in a script, whether it is there or not
  cloudtik down demo --yes --if-exists

Software that was fetched stays on this machine for the next cluster:
`cloudtik cache list` shows it, `cloudtik cache clean` removes it.";

pub const STATUS: &str = "\
Examples:
  # Show the only cluster
  cloudtik status

  # Wait until the cluster \"demo\" is ready, for one minute at most
  cloudtik status demo --wait --timeout 1m

  # Show every change
  cloudtik status demo -w

  # Print whether it is ready
  cloudtik status demo -o json | jq .ready";

pub const INFO: &str = "\
Examples:
  # Show the address of the head, the consoles and the directories
  cloudtik info demo";

pub const NODES: &str = "\
Examples:
  # List the nodes
  cloudtik nodes demo

  # Print everything about them as JSON
  cloudtik nodes demo -o json";

pub const RUNTIMES: &str = "\
Examples:
  # List the services on every node, and the consoles
  cloudtik runtimes demo";

pub const LIST: &str = "\
Examples:
  # List the clusters of all workspaces
  cloudtik list";

pub const EVENTS: &str = "\
Examples:
  # List the events of one node
  cloudtik events demo --node w1

  # Print new events until Ctrl-C
  cloudtik events demo -f

  # Print one JSON document a line
  cloudtik events demo -f -o json";

pub const WHY: &str = "\
Examples:
  # Explain the number of nodes, and what is waiting, paused or held
  cloudtik why demo

  # Explain the state of a node
  cloudtik why demo w1

  # Explain a job by its name
  cloudtik why demo report-7

  # Explain a decision by its number in \"cloudtik events\"
  cloudtik why demo 123";

pub const SCALE: &str = "\
Examples:
  # Set the number of workers, and wait until they are ready
  cloudtik scale demo --workers 4 --wait

  # Set the number of workers of a type
  cloudtik scale demo --workers 2 --type gpu

  # Request cores and memory, on the cheapest nodes
  cloudtik scale demo --cpus 64 --memory 256Gi

  # Request 4 GPUs for two hours in addition, all of them or none
  cloudtik scale demo --add --gpus 4 --gang --for 2h

  # Request bundles, each on a node of its own
  cloudtik scale demo --spread \\
    --bundles '[{\"cpus\": 4, \"memory\": \"8Gi\", \"count\": 3}]'";

pub const REQUESTS: &str = "\
Examples:
  # List the requests, and whether they are met
  cloudtik requests demo";

pub const REVOKE: &str = "\
Examples:
  # Withdraw the request \"request-1\"
  cloudtik revoke demo request-1

  # Withdraw it, and remove idle workers without waiting
  cloudtik revoke demo request-1 --now";

pub const ROLLOUT: &str = "\
Examples:
  # Show how far the newest revision has come
  cloudtik rollout status demo

  # Go back to what the cluster ran before
  cloudtik rollout undo demo";

pub const HOLD: &str = "\
Examples:
  # Keep the nodes as they are during a migration
  cloudtik hold demo --reason \"migrating the network\"";

pub const RESUME: &str = "\
Examples:
  # Let the head decide again
  cloudtik resume demo";

pub const QUARANTINE: &str = "\
A quarantined node counts for maxima and the budget only.

Examples:
  # Set a node aside, to look at it
  cloudtik quarantine demo w2 --reason \"its disk is slow\"";

pub const RELEASE: &str = "\
Examples:
  # Return a node to the cluster
  cloudtik release demo w2";

pub const SIMULATE: &str = "\
Nothing is created. docs/simulate.md describes scenarios, and examples/scenarios
has some. `[head] record = true` in a cluster file makes its head write a
recording.

Examples:
  # Show the number of nodes, their cost, and how long work waits
  cloudtik simulate cluster.toml --demand day.toml

  # Print every decision
  cloudtik simulate cluster.toml --demand day.toml --decisions

  # Compare two clusters
  cloudtik simulate old.toml --demand day.toml --compare new.toml

  # Replay every decision of a head
  cloudtik simulate --replay record-0000000001.jsonl";

pub const KILL_NODE: &str = "\
Examples:
  # Kill a node without stopping its services first
  cloudtik kill-node demo w1 --yes";

pub const DRAIN: &str = "\
Examples:
  # Drain a node, and wait until it is deleted
  cloudtik drain demo w2 --yes --wait";

pub const EXEC: &str = "\
The command is not taken apart by a shell; where it needs one, run \"sh -c\".
The exit status is that of the command, 126 if it is no program, 127 if it is
not found, and 128 + n if signal n ended it.

What the command starts ends with it, within a second, unless it has left the
session of the command (\"setsid\") and its output is redirected. \"nohup\" alone
is not enough.

If nobody reads the output any more, the command ends when it writes, as in a
pipeline.

Examples:
  # Run a command on the head's node
  cloudtik exec demo -- hostname

  # Run a command with a terminal on a worker
  cloudtik exec demo --node w1 -t -- top

  # Run a command on every node
  cloudtik exec demo --all -- uptime

  # Run a command line of a shell
  cloudtik exec demo -- sh -c 'du -s /tmp/* | sort -n'

  # Start a program that goes on in the background
  cloudtik exec demo -- sh -c 'setsid my-server >server.log 2>&1 &'

  # Print the exit status and the output as JSON
  cloudtik exec demo -o json -- df -h";

pub const SUBMIT: &str = "\
Everything after FILE belongs to the job: write cloudtik's options before it.
Which files and options a job may have depends on its runtime. Spark runs .py,
.jar and .sql files.

The job runs on the head's node and goes on whatever becomes of this command.
Ctrl-C asks whether to cancel it or to leave it running; where there is no
terminal to ask on, it cancels. The exit status is the job's.

Examples:
  # Run a Python program on Spark, with its arguments
  cloudtik submit demo wordcount.py /usr/share/common-licenses/GPL-3

  # Give the program an option of its own
  cloudtik submit demo report.py -o report.csv

  # Choose the main class of a jar, and give the job more memory
  cloudtik submit demo --class org.example.Main \\
      --conf spark.executor.memory=1g job.jar

  # Bring modules along, and set a variable
  cloudtik submit demo --py-files lib.zip,names.py --env STAGE=test job.py

  # Run SQL
  cloudtik submit demo query.sql

  # Leave a job to itself, for an hour at most, with two more attempts
  cloudtik submit demo --detach --name nightly --timeout 1h --retries 2 job.py

  # Run a program of the head's node, with a file beside it
  cloudtik submit demo --files data.csv --command -- wc -l data.csv";

pub const LOGS: &str = "\
Examples:
  # Print the log of the head
  cloudtik logs demo

  # Follow the logs of Spark's services on every node
  cloudtik logs demo --runtime spark -f

  # Print the log of a node's agent
  cloudtik logs demo --node w1";

pub const UPLOAD: &str = "\
TO is named as by \"cp -r\": if it is a folder, or ends with a slash, the copy
goes into it; otherwise TO is the copy's new name. Missing folders are created.
A file replaces a file; a folder is merged into a folder of the same name.

A symbolic link that is named is followed; links inside a folder stay links.
A file that grows meanwhile is copied as it was at the start. An entry that
cannot be read is an error, and nothing is copied.

Examples:
  # Copy a file into a folder of a worker
  cloudtik upload demo data.csv /tmp/ --node w1

  # Copy a file under a new name
  cloudtik upload demo data.csv /tmp/in.csv

  # Copy a folder: /tmp/in holds its content
  cloudtik upload demo ./data /tmp/in";

pub const DOWNLOAD: &str = "\
TO is named as by \"cp -r\": if it is a folder, or ends with a slash, the copy
goes into it; otherwise TO is the copy's new name. Missing folders are created.
A file replaces a file; a folder is merged into a folder of the same name.

A symbolic link that is named is followed; links inside a folder stay links.
A file that grows meanwhile is copied as it was at the start.

Examples:
  # Copy a folder of a worker to ./results
  cloudtik download demo /tmp/out ./results --node w1

  # Copy a file into the current folder
  cloudtik download demo /tmp/out.csv .";

pub const ATTACH: &str = "\
When the shell ends, so does what it started, by the rule of \"exec\".

Examples:
  # Open a shell on a worker
  cloudtik attach demo w1";

pub const DOCTOR: &str = "\
Examples:
  # Check this machine
  cloudtik doctor

  # Check this machine and a cluster
  cloudtik doctor demo";

pub const ACCESS: &str = "\
A viewer reads: status, nodes, events, explanations and logs. An operator also
runs commands and jobs, copies files, scales, drains and holds. An admin also
applies cluster files, takes the cluster down and grants access. The user who
created the cluster needs no grant.

Examples:
  # Invite a person who may look at a cluster, and print what they run
  cloudtik access grant demo ada --role viewer

  # Accept an invitation
  cloudtik access accept cloudtik://demo@10.0.0.5:7070/5f…/9c…

  # End the access of a person
  cloudtik access revoke demo ada";

pub const DUMP: &str = "\
Examples:
  # Save everything for a report
  cloudtik dump demo > demo.json";

pub const CACHE: &str = "\
Examples:
  # List the software that is kept, its size and who uses it
  cloudtik cache list

  # Remove what no cluster uses
  cloudtik cache clean";

pub const RUNTIME: &str = "\
Examples:
  # List the shipped runtimes
  cloudtik runtime list

  # Write the folder of a new runtime
  cloudtik runtime new my-runtime

  # Print the files and commands of Spark on a worker
  cloudtik runtime render cluster.toml --runtime spark --node w1";

pub const COMPLETIONS: &str = "\
Examples:
  # Bash
  cloudtik completions bash \\
    > ~/.local/share/bash-completion/completions/cloudtik

  # Zsh
  cloudtik completions zsh > ~/.zfunc/_cloudtik

  # Fish
  cloudtik completions fish > ~/.config/fish/completions/cloudtik.fish";

pub const VERSION: &str = "\
Examples:
  # Print the version as JSON
  cloudtik version -o json";

pub const INIT: &str = "\
An existing file is never overwritten.

Examples:
  # Write cluster.toml
  cloudtik init

  # Write another file, for a cluster of another name
  cloudtik init prod.toml --name prod";

pub const VALIDATE: &str = "\
Examples:
  # Check a file
  cloudtik validate cluster.toml

  # Check what a program wrote, and print problems as JSON
  generate-cluster | cloudtik validate - -o json";

pub const PROVIDER: &str = "\
Examples:
  # List the providers that this program has
  cloudtik provider list

  # Check a provider of your own: its executable is named in cluster.toml
  cloudtik provider check cluster.toml";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::COLUMNS;
    use crate::cli::Arguments;

    /// Everything wrong with the help of a command and of those below it.
    fn faults(command: &mut clap::Command, path: &str, found: &mut Vec<String>) {
        let texts = [command.render_long_help().to_string(), command.get_after_help().map_or_else(String::new, ToString::to_string)];
        for line in texts.iter().flat_map(|text| text.lines()).filter(|line| line.chars().count() > COLUMNS) {
            found.push(format!("{path}: wider than {COLUMNS} columns: {line}"));
        }
        let about = command.get_about().map_or_else(String::new, ToString::to_string);
        if !about.starts_with(char::is_uppercase) || about.ends_with('.') {
            found.push(format!("{path}: begins with a capital letter and has no full stop: {about:?}"));
        }
        let undescribed = command.get_arguments().filter(|argument| argument.get_help().is_none() && !argument.is_hide_set());
        found.extend(undescribed.map(|argument| format!("{path}: {} has no help", argument.get_id())));
        let has_examples = texts[1].contains("Examples:\n  # ");
        if !command.has_subcommands() && !has_examples {
            found.push(format!("{path}: has no examples with comments"));
        }
        for inner in command.get_subcommands_mut().filter(|inner| inner.get_name() != "help") {
            let path = format!("{path} {}", inner.get_name());
            faults(inner, &path, found);
        }
    }

    #[test]
    fn help_has_examples_and_fits_80_columns() {
        let mut command = Arguments::command();
        command.build();
        let mut found = Vec::new();
        faults(&mut command, "cloudtik", &mut found);
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}
