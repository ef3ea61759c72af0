//! Broken workspace files, and what a person is told about each.

use cloudtik_config::Workspace;

const FILES: [(&str, &str); 7] = [
    ("empty", ""),
    ("no-name", "[workspace]\n[provider]\nkind = \"local\"\n"),
    ("misspelt-keys", "[workspace]\nnmae = \"dev\"\n[provider]\nknid = \"local\"\n"),
    ("misspelt-tables", "[workspaces]\nname = \"dev\"\n[providr]\nkind = \"local\"\n"),
    ("name-with-path", "[workspace]\nname = \"../dev\"\n[provider]\nkind = \"local\"\n"),
    ("cluster-file", "[cluster]\nname = \"demo\"\n[provider]\nkind = \"local\"\n[workers.default]\nmin = 1\n"),
    ("many-at-once", "name = \"dev\"\n[workspace]\nname = 3\n[provider]\nkind = \"Local\"\n[network]\n"),
];

#[test]
fn each_broken_workspace_file_is_explained() {
    for (name, text) in FILES {
        let problems = Workspace::read("workspace.toml", text).expect_err(name);
        insta::assert_snapshot!(name, problems.render(false, 100));
    }
}
