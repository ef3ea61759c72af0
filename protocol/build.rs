//! Compiles the contract in `proto/` without an installed `protoc`, and lists the methods for administrators.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/cloudtik.proto");
    let descriptors = protox::compile(["cloudtik.proto"], ["proto"])?;
    let admin = descriptors.file.iter().flat_map(|file| &file.service).find(|service| service.name() == "Admin");
    let methods: Vec<&str> = admin.ok_or("the contract has no service Admin")?.method.iter().map(|method| method.name()).collect();
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    std::fs::write(Path::new(&out).join("admin_methods.rs"), methods_enum(&methods))?;
    tonic_prost_build::configure().bytes(".").build_transport(false).compile_fds(descriptors)?;
    Ok(())
}

/// An enum of the methods: what must say something of each of them does not compile when one is added.
fn methods_enum(methods: &[&str]) -> String {
    let listed = |each: &dyn Fn(&str) -> String| methods.iter().map(|method| each(method)).collect::<Vec<_>>().join("\n    ");
    format!(
        "/// The methods of the service `Admin`.\n\
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]\n\
        pub enum AdminMethod {{\n    {}\n}}\n\
        impl AdminMethod {{\n\
        pub const ALL: &'static [Self] = &[{}];\n\
        /// As the contract spells it.\n\
        pub fn name(self) -> &'static str {{ match self {{ {} }} }}\n\
        }}\n",
        listed(&|method| format!("{method},")),
        listed(&|method| format!("Self::{method},")),
        listed(&|method| format!("Self::{method} => \"{method}\",")),
    )
}
