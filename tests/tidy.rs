//! What a reader would trip over: documents that fell behind the code, and words that do not belong here.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn sources(folder: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|end| end == "rs") => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_actor_is_described() {
    let described = read("actors.md");
    let mut actors = Vec::new();
    for path in sources("src") {
        if path.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        // Actors of unit tests are stand-ins.
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for line in code.lines().filter(|line| line.starts_with("impl") && line.contains(" Actor for ")) {
            let name = line.split(" Actor for ").nth(1).unwrap();
            actors.push(name.split(['<', ' ']).next().unwrap().to_owned());
        }
    }
    assert!(actors.len() >= 5, "only {actors:?} were found");
    for actor in actors {
        assert!(described.contains(&format!("## {actor} ")), "actors.md does not describe the actor {actor}");
    }
}

#[test]
fn files_that_actors_md_names_exist() {
    for word in read("actors.md").split(['`', '(', ')', ' ']) {
        if word.ends_with(".rs") && (word.starts_with("src/") || word.starts_with("tests/")) {
            assert!(root().join(word).exists(), "actors.md names {word}, which is not there");
        }
    }
}

#[test]
fn the_readme_lists_the_settings_that_there_are() {
    let readme = read("README.md");
    for line in janebot::config::reference().lines() {
        assert!(readme.contains(line), "README.md lacks this line of `janebot config`:\n{line}");
    }
}

#[test]
fn files_stay_readable() {
    for path in sources("src") {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 650, "{} has {lines} lines: it hides a second noun", path.display());
    }
}
