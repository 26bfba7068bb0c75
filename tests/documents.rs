//! What the pages in `docs/` say of the code is there.

use std::fs;
use std::path::Path;

/// All code of the tests, and of the modules that have tests beside them.
fn code(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).expect("it can be read") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            code(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("it is text"));
        }
    }
}

/// Test names are sentences; nothing else in backticks is, but for metrics.
fn is_name_of_a_test(word: &str) -> bool {
    !word.starts_with("shoal_")
        && word.matches('_').count() >= 3
        && word.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

#[test]
fn each_test_that_a_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    ["src", "tests"].iter().for_each(|folder| code(&root.join(folder), &mut text));
    for page in ["README.md", "docs/consistency.md"] {
        let page = fs::read_to_string(root.join(page)).expect("it is there");
        let names: Vec<&str> = page.split('`').filter(|word| is_name_of_a_test(word)).collect();
        assert!(names.len() > 20, "{names:?}");
        let missing: Vec<_> = names.iter().filter(|name| !text.contains(&format!("fn {name}("))).collect();
        assert!(missing.is_empty(), "no tests are called {missing:?}");
    }
}
