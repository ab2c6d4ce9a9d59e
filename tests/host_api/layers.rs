//! Long chains of checkpoints: made one layer in the background, with the same files to see.

use std::path::Path;

use reqwest::Method;
use serde_json::Value;

use crate::served::{Served, serve};

/// All that there is below the home, with kinds, modes, times and contents.
const LOOK: &str = "find . -printf '%P %y %m %T@ %l\\n' | sort; find . -type f | sort | xargs cat";

/// Changes of each kind: replaced, added, removed, emptied and made anew, turned into something else.
fn change(n: usize) -> String {
    format!(
        "echo {n} > file; mkdir -p grown; echo {n} > grown/{n}; rm -f grown/{old}; rm -rf anew; mkdir anew; \
         echo {n} > anew/{n}; rm -rf turned; if [ $(({n} % 2)) = 0 ]; then mkdir turned; touch turned/{n}; \
         else echo {n} > turned; fi; ln -sf {n} link; rm -rf gone; [ {n} = 3 ] && mkdir gone && touch gone/x; \
         mkdir -p kept/{n}; [ {n} = 9 ] && rm -r kept/5; chmod 7{m}0 kept",
        old = n.saturating_sub(2),
        m = n % 8,
    )
}

fn meta(served: &Served) -> Value {
    let file = served.dir.path().join("host/sprites/a/meta.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn layers(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir.join("host/sprites/a/layers"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_chain_becomes_one_layer_and_shows_the_same_files() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    let mut seen = Vec::new();
    for n in 1..=16 {
        served.sh("a", &change(n)).await;
        seen.push(served.sh("a", LOOK).await.stdout);
        served.checkpoint("a", "").await;
    }
    // The sandbox that comes after the sixteenth begins it; meanwhile the sprite answers.
    while meta(&served)["checkpoints"][15]["flat"] != true {
        assert_eq!(served.sh("a", LOOK).await.stdout, seen[15]);
    }
    assert_eq!(served.sh("a", LOOK).await.stdout, seen[15]);
    assert_eq!(served.call(Method::POST, "/sprites/a/restart").await.0, 200);
    assert_eq!(served.sh("a", LOOK).await.stdout, seen[15]);

    // The sixteenth stands alone now, so what it was built on may go; what others are built on may not.
    for (id, status) in [("v15", 204), ("v13", 409), ("v14", 204), ("v16", 409)] {
        assert_eq!(served.call(Method::DELETE, &format!("/sprites/a/checkpoints/{id}")).await.0, status, "{id}");
    }
    served.restore("a", "v3").await;
    assert_eq!(served.sh("a", LOOK).await.stdout, seen[2]);
    served.restore("a", "v16").await;
    assert_eq!(served.sh("a", LOOK).await.stdout, seen[15]);
    served.sh("a", &change(17)).await;
    let seventeenth = served.sh("a", LOOK).await.stdout;
    assert_eq!(served.checkpoint("a", "").await, "v17");
    served.sh("a", "rm -rf *").await;
    served.restore("a", "v17").await;
    assert_eq!(served.sh("a", LOOK).await.stdout, seventeenth);

    // What is not needed any more is deleted, its last user gone.
    while layers(served.dir.path()).contains(&"v16".to_owned()) {
        assert_eq!(served.call(Method::POST, "/sprites/a/restart").await.0, 200);
        served.restore("a", "v17").await;
    }
    let mut expected: Vec<String> =
        (1..=13).map(|n| format!("v{n}")).chain(["v16-flat".into(), "v17".into()]).collect();
    expected.sort();
    assert_eq!(layers(served.dir.path()), expected);
    served.host.shutdown().await;
}
