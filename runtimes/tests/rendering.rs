//! Every file of every runtime, in homes whose path holds odd characters: read by the reader of its format, a value is what
//! it was.

use std::collections::{BTreeMap, BTreeSet};

use cloudtik_config::Cluster;
use cloudtik_model::address::with_port;
use cloudtik_model::report::Java;
use cloudtik_model::{Bytes, NodeTypeName, Resources, goal};
use cloudtik_runtimes::planner::{Availability, Wanted};
use cloudtik_runtimes::{Catalog, Folder, NodeContext, Planner, View};

const HOMES: [&str; 6] = ["/home/a b", "/home/o'neil \"x\"", "/home/100%20", "/home/c#", "/home/Zoë/日本 😀", "/home/back\\slash&<x>"];

fn own_folder() -> Folder {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/runtimes/webserver");
    cloudtik_runtimes::catalog::read_folder(&directory).expect("the example is there")
}

fn services(text: &str, home: &str, node: &str) -> Vec<goal::Service> {
    services_at(text, home, node, "127.0.0.1", "127.0.0.2")
}

fn services_at(text: &str, home: &str, node: &str, head_address: &str, address: &str) -> Vec<goal::Service> {
    let cluster = Cluster::read("c.toml", text).unwrap_or_else(|e| panic!("{}", e.render(false, 100)));
    let folders = BTreeMap::from([("webserver".parse().expect("valid"), own_folder())]);
    let catalog = Catalog::of_cluster(&cluster.runtimes, &folders, "c.toml", text).expect("valid");
    let context = NodeContext {
        id: node.parse().expect("valid"),
        node_type: if node == "head" { NodeTypeName::head() } else { NodeTypeName::new("default").expect("valid") },
        address: address.to_owned(),
        resources: Resources { cpus: 2, memory: Bytes(2 << 30), gpus: 0 },
        home: home.to_owned(),
        artifacts: format!("{home}/artifacts"),
        javas: vec![Java { home: "/java".to_owned(), major: 17 }],
    };
    let view = View { head_address: head_address.to_owned(), bus: with_port(head_address, 7070) };
    let here = |wanted: &Wanted| Availability::Here(goal::Artifact { name: wanted.name.clone(), digest: "d".to_owned(), size: 0 });
    Planner::new(cluster, catalog).plan(&view, &context, &BTreeSet::new(), &here).expect("renders").services
}

const ALL: &str = "[cluster]\nname = \"c\"\n[provider]\nkind = \"local\"\n[workers.default]\n[runtimes.spark]\n[runtimes.prometheus]\n\
                   [runtimes.webserver]\npath = \"./webserver\"\n";

fn file<'a>(services: &'a [goal::Service], service: &str, path: &str) -> &'a str {
    let service = services.iter().find(|s| s.key.to_string() == service).expect("it is there");
    &service.files.iter().find(|f| f.path == path).expect("it has the file").content
}

/// Every text of a service's goal.
fn texts(service: &goal::Service) -> Vec<String> {
    fn collect(value: &serde_json::Value, into: &mut Vec<String>) {
        match value {
            serde_json::Value::String(text) => into.push(text.clone()),
            serde_json::Value::Array(values) => values.iter().for_each(|v| collect(v, into)),
            serde_json::Value::Object(fields) => fields.values().for_each(|v| collect(v, into)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&serde_json::to_value(service).expect("a document"), &mut found);
    found
}

#[test]
fn an_ipv6_address_is_put_in_brackets_wherever_a_port_follows() {
    for node in ["head", "w1"] {
        for service in services_at(ALL, "/home/node", node, "fd00::1", "fd00::2") {
            let texts = texts(&service);
            assert!(texts.iter().any(|text| text.contains("fd00::2")), "{}: its address is in {texts:#?}", service.key);
            for text in texts {
                for bare in ["fd00::1:", "fd00::2:", "://fd00"] {
                    assert!(!text.contains(bare), "{}: {text}", service.key);
                }
            }
        }
    }
}

/// What `java.util.Properties.load` makes of a text.
fn properties(text: &str) -> BTreeMap<String, String> {
    let mut read = BTreeMap::new();
    for line in text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with(['#', '!'])) {
        let (mut key, mut units, mut letters) = (None::<Vec<u16>>, Vec::new(), line.chars().peekable());
        while let Some(letter) = letters.next() {
            let is_end = letter == '=' || letter == ':' || letter == ' ' || letter == '\t';
            if letter == '\\' {
                match letters.next().expect("no line goes on in the next one") {
                    'n' => units.push(10),
                    'r' => units.push(13),
                    't' => units.push(9),
                    'f' => units.push(12),
                    'u' => {
                        let digits: String = letters.by_ref().take(4).collect();
                        units.push(u16::from_str_radix(&digits, 16).expect("four digits"));
                    }
                    other => units.extend(other.encode_utf16(&mut [0; 2]).iter()),
                }
            } else if is_end && key.is_none() {
                key = Some(std::mem::take(&mut units));
                let mut is_separated = letter == '=' || letter == ':';
                while let Some(next) = letters.peek() {
                    match next {
                        ' ' | '\t' => {}
                        '=' | ':' if !is_separated => is_separated = true,
                        _ => break,
                    }
                    letters.next();
                }
            } else {
                units.extend(letter.encode_utf16(&mut [0; 2]).iter());
            }
        }
        let text = |units: Vec<u16>| String::from_utf16(&units).expect("whole characters");
        let (key, value) = key.map_or_else(|| (units.clone(), Vec::new()), |key| (key, units.clone()));
        read.insert(text(key), text(value));
    }
    read
}

/// A URI's path, decoded.
fn path_of(uri: &str) -> String {
    let encoded = uri.strip_prefix("file://").expect("a file's");
    assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~/%".contains(&b)), "{uri}");
    let (mut bytes, mut rest) = (Vec::new(), encoded.bytes());
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits: Vec<u8> = rest.by_ref().take(2).collect();
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).expect("digits"), 16).expect("two digits"));
    }
    String::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn paths_of_odd_homes_arrive_in_every_file_as_they_are() {
    for home in HOMES {
        let head = services(ALL, home, "head");
        let spark = properties(file(&head, "spark/master", "conf/spark-defaults.conf"));
        let data = format!("{home}/data/spark");
        assert_eq!(path_of(&spark["spark.eventLog.dir"]), format!("{data}/events"));
        assert_eq!(spark["spark.history.fs.logDirectory"], format!("file://{data}/events"), "Hadoop's paths are not encoded");
        assert_eq!(spark["spark.deploy.recoveryDirectory"], format!("{data}/recovery"));

        let prometheus = file(&head, "prometheus/server", "prometheus.yml");
        for (key, name) in [("ca_file", "ca.crt"), ("cert_file", "node.crt"), ("key_file", "node.key")] {
            let line = prometheus.lines().find_map(|l| l.trim().strip_prefix(&format!("{key}: "))).expect("it is there");
            let read: String = serde_json::from_str(line).expect("quoted as in JSON, which YAML reads");
            assert_eq!(read, format!("{home}/identity/{name}"));
        }
    }
}

/// Texts that a format could take for something of its own.
#[test]
fn values_of_properties_arrive_in_files_as_they_are() {
    let odd = "C:\\dir\\new # x = y\nspark.master local";
    let text = format!(
        "{ALL}[runtimes.webserver.properties]\ngreeting = {odd}\n[runtimes.spark.properties]\n\"spark.odd\" = {odd}\n\"spark.lead\" = \" =x\"\nevent_log_age = \"36h\"\n\
         event_log_size = \"2GiB\"\n",
        odd = serde_json::to_string(odd).expect("a text")
    );
    let head = services(&text, "/node", "head");
    for path in ["conf/spark-defaults.conf", "driver/spark-defaults.conf"] {
        let spark = properties(file(&head, "spark/master", path));
        assert_eq!(spark["spark.odd"], odd);
        assert_eq!(spark["spark.lead"], " =x");
        assert_eq!((&*spark["spark.history.fs.cleaner.maxAge"], &*spark["spark.history.fs.cleaner.maxNum"]), ("36h", "32"));
        assert!(!spark.contains_key("spark.master"), "nothing else was set");
    }
    let worker = services(&text, "/node", "w1");
    let page = file(&worker, "webserver/web", "pages/index.html");
    assert_eq!(page, "<h1>C:\\dir\\new # x = y&#10;spark.master local from w1 of c</h1>\n");
    let node: serde_json::Value = serde_json::from_str(file(&worker, "webserver/web", "pages/node.json")).expect("JSON");
    assert_eq!((&node["node"], &node["cpus"]), (&"w1".into(), &2.into()));
}

/// Templates of files that put in a value without a filter: each is looked at here, none may be a path or a person's text.
#[test]
fn every_value_in_a_shipped_file_goes_through_a_filter() {
    let plain = |text: &str| {
        let expressions = text.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()).map(str::trim);
        expressions.filter(|e| !FILTERS.iter().any(|f| e.contains(&format!("| {f}")))).map(str::to_owned).collect::<Vec<_>>()
    };
    // Numbers, and names that the template itself lists.
    const NUMBERS: [&str; 3] = ["ports.", "name", "[(properties.event_log_size | mebibytes)"];
    const FILTERS: [&str; 7] = ["uri", "properties", "properties_key", "shell", "xml", "yaml", "json"];
    let catalog = Catalog::shipped();
    let shipped = catalog.iter().flat_map(|m| m.templates.iter().map(move |(path, text)| (format!("{}/{path}", m.name), text.clone())));
    let own = own_folder().into_iter().filter(|(path, _)| path != "runtime.toml");
    for (path, text) in shipped.chain(own) {
        let bare: Vec<String> = plain(&text).into_iter().filter(|e| !NUMBERS.iter().any(|number| e.starts_with(number))).collect();
        assert_eq!(bare, Vec::<String>::new(), "{path}");
    }
}

#[test]
fn a_template_is_compiled_once_however_often_it_is_filled_in() {
    let cluster = Cluster::read("c.toml", ALL).expect("valid");
    let folders = BTreeMap::from([("webserver".parse().expect("valid"), own_folder())]);
    let catalog = Catalog::of_cluster(&cluster.runtimes, &folders, "c.toml", ALL).expect("valid");
    let planner = Planner::new(cluster, catalog);
    let here = |wanted: &Wanted| Availability::Here(goal::Artifact { name: wanted.name.clone(), digest: "d".to_owned(), size: 0 });
    let plan = |node: &str| {
        let context = NodeContext {
            id: node.parse().expect("valid"),
            node_type: if node == "head" { NodeTypeName::head() } else { NodeTypeName::new("default").expect("valid") },
            address: "127.0.0.2".to_owned(),
            resources: Resources { cpus: 2, memory: Bytes(2 << 30), gpus: 0 },
            home: format!("/home/{node}"),
            artifacts: "/artifacts".to_owned(),
            javas: Vec::new(),
        };
        planner.plan(&View::default(), &context, &BTreeSet::new(), &here).expect("renders");
        planner.templates().compiled()
    };
    let first = plan("head").max(plan("w1"));
    assert!(first > 10, "{first}");
    assert_eq!((plan("head"), plan("w2")), (first, first));
}
