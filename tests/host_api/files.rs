//! File operations: replies, the SDKs' habits, and errors with their codes.

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::served::{Served, TOKEN, serve};

async fn write(served: &Served, query: &str, content: impl Into<Bytes>) -> (StatusCode, Value) {
    let reply =
        served.request(Method::PUT, &format!("/sprites/a/fs/write?{query}")).body(content.into()).send().await.unwrap();
    (reply.status(), reply.json().await.unwrap())
}

async fn read(served: &Served, query: &str) -> (StatusCode, Bytes) {
    let reply = served.request(Method::GET, &format!("/sprites/a/fs/read?{query}")).send().await.unwrap();
    (reply.status(), reply.bytes().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_written_read_listed_moved_copied_and_deleted() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    let (status, reply) = write(&served, "path=d%2Fx.txt&workingDir=%2Fhome%2Fsprite&mode=0640", "content").await;
    assert_eq!((status.as_u16(), reply), (200, json!({"path": "/home/sprite/d/x.txt", "size": 7, "mode": "0640"})));
    assert_eq!(
        read(&served, "path=%2Fhome%2Fsprite%2Fd%2Fx.txt&workingDir=%2F").await,
        (StatusCode::OK, "content".into())
    );
    assert_eq!(read(&served, "path=d%2Fx.txt").await.1, "content");
    let post = |op: &'static str, body: Value| served.call_with(Method::POST, op, body);
    let body = json!({"source": "d/x.txt", "dest": "d/y.txt", "workingDir": "/home/sprite", "recursive": false});
    assert_eq!(post("/sprites/a/fs/copy", body.clone()).await.0, 200);
    let body = json!({"source": "d/y.txt", "dest": "d/z.txt", "workingDir": "/home/sprite"});
    let (status, reply) = post("/sprites/a/fs/rename", body).await;
    assert_eq!((status.as_u16(), &reply["dest"]), (200, &json!("/home/sprite/d/z.txt")));
    let body = json!({"path": "/home/sprite/d/z.txt", "workingDir": "/", "mode": "0700"});
    assert_eq!(post("/sprites/a/fs/chmod", body).await.0, 200);
    let (status, list) = served.call(Method::GET, "/sprites/a/fs/list?path=d&workingDir=%2Fhome%2Fsprite").await;
    assert_eq!((status.as_u16(), &list["count"]), (200, &json!(2)));
    let entry = &list["entries"][1];
    assert_eq!((&entry["name"], &entry["path"]), (&json!("z.txt"), &json!("/home/sprite/d/z.txt")));
    assert_eq!(
        (&entry["type"], &entry["mode"], &entry["size"], &entry["isDir"]),
        (&json!("file"), &json!("0700"), &json!(7), &json!(false))
    );
    let time: jiff::Timestamp = entry["modTime"].as_str().unwrap().parse().unwrap();
    assert_eq!(time.subsec_nanosecond() % 1000, 0, "Python reads no more than six digits");
    let (_, all) = served.call(Method::GET, "/sprites/a/fs/list?path=%2Fhome%2Fsprite&recursive=true").await;
    let paths: Vec<_> = all["entries"].as_array().unwrap().iter().map(|e| e["path"].as_str().unwrap()).collect();
    assert!(paths.contains(&"/home/sprite/d") && paths.contains(&"/home/sprite/d/x.txt"), "{paths:?}");
    let (status, gone) = served
        .call(Method::DELETE, "/sprites/a/fs/delete?path=%2Fhome%2Fsprite%2Fd&workingDir=%2F&recursive=true")
        .await;
    let deleted = ["/home/sprite/d", "/home/sprite/d/x.txt", "/home/sprite/d/z.txt"];
    assert_eq!((status.as_u16(), gone), (200, json!({"deleted": deleted, "count": 3})));
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_their_code_and_the_status_that_goes_with_it() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    served.sh("a", "mkdir full empty; echo > full/file").await;
    for (method, query, status, code) in [
        (Method::GET, "read?path=none", 404, "ENOENT"),
        (Method::GET, "read?path=full", 400, "EISDIR"),
        (Method::GET, "read?path=", 400, "EINVAL"),
        (Method::GET, "list?path=none", 404, "ENOENT"),
        (Method::DELETE, "delete?path=full&recursive=false", 409, "ENOTEMPTY"),
        (Method::DELETE, "delete?path=none", 404, "ENOENT"),
        (Method::PUT, "write?path=none%2Fx&mkdirParents=false", 404, "ENOENT"),
        (Method::PUT, "write?path=full%2Ffile%2Fx&mkdirParents=false", 400, "ENOTDIR"),
        (Method::PUT, "write?path=full%2Ffile%2Fx", 400, "ENOTDIR"),
        (Method::PUT, "write?path=full", 400, "EISDIR"),
        (Method::PUT, "write?path=%2Fproc%2Fx", 404, "ENOENT"),
        (Method::PUT, "write?path=x&mode=rw", 400, "EINVAL"),
    ] {
        let (got, body) = served.call(method.clone(), &format!("/sprites/a/fs/{query}")).await;
        assert_eq!((got.as_u16(), &body["code"]), (status, &json!(code)), "{method} {query}: {body}");
        assert!(body["error"].is_string() && body["path"].is_string());
    }
    let (status, body) = served.call(Method::PUT, "/sprites/a/fs/write?path=%2Fusr%2Fx").await;
    assert!(matches!(body["code"].as_str(), Some("EROFS" | "EACCES")) && status == 403, "{body}");
    assert_eq!(served.call(Method::DELETE, "/sprites/a/fs/delete?path=empty&recursive=false").await.0, 200);
    let body = json!({"path": "full", "recursive": true});
    assert_eq!(served.call_with(Method::DELETE, "/sprites/a/fs/delete", body).await.0, 200);
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_and_changes_of_modes_tell_what_they_affected() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    served.sh("a", "mkdir -p d/sub; printf 12345 > d/sub/leaf; ln -s leaf d/sub/link").await;
    let body = json!({"source": "d", "dest": "e", "workingDir": "/home/sprite", "recursive": true});
    let (_, reply) = served.call_with(Method::POST, "/sprites/a/fs/copy", body).await;
    let pair = |tail: &str| json!({"source": format!("/home/sprite/d{tail}"), "dest": format!("/home/sprite/e{tail}")});
    let copied = ["", "/sub", "/sub/leaf", "/sub/link"].map(pair);
    assert_eq!(
        reply,
        json!({"copied": copied, "count": 4, "totalBytes": 5, "source": "/home/sprite/d", "dest": "/home/sprite/e"})
    );
    let body = json!({"path": "/home/sprite/e", "mode": "0700", "recursive": true});
    let (_, reply) = served.call_with(Method::POST, "/sprites/a/fs/chmod", body).await;
    let affected = ["/home/sprite/e", "/home/sprite/e/sub", "/home/sprite/e/sub/leaf"];
    assert_eq!(reply, json!({"affected": affected, "count": 3}));
    let (status, reply) = served.call_with(Method::POST, "/sprites/a/fs/chown", json!({"path": "d", "uid": 0})).await;
    assert_eq!((status.as_u16(), &reply["code"]), (501, &json!("ENOSYS")), "{reply}");
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keep_file_makes_its_directory_but_not_those_above() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    let query = "path=%2Fhome%2Fsprite%2Fnew%2F.keep&mkdirParents=false";
    assert_eq!(write(&served, query, "").await.0, 200);
    assert_eq!(write(&served, query, "").await.0, 200);
    let (status, body) = write(&served, "path=%2Fhome%2Fsprite%2Fno%2Fnew%2F.keep&mkdirParents=false", "").await;
    assert_eq!((status.as_u16(), &body["code"]), (404, &json!("ENOENT")));
    assert_eq!(served.sh("a", "ls -A . new").await.stdout, ".:\nnew\n\nnew:\n.keep\n");
    served.host.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_and_binary_files_go_through_unchanged_and_a_broken_upload_makes_no_file() {
    let Some(served) = serve().await else { return };
    served.create("a").await;
    let content: Bytes = (0..20_000_000_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>().into();
    let (status, reply) = write(&served, "path=big", content.clone()).await;
    assert_eq!((status.as_u16(), &reply["size"]), (200, &json!(20_000_000)));
    assert!(read(&served, "path=big").await.1 == content);
    let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("lost"))]);
    let request =
        served.request(Method::PUT, "/sprites/a/fs/write?path=broken").body(reqwest::Body::wrap_stream(broken));
    assert!(request.send().await.is_err());
    // What was cut is not taken for whole.
    assert_eq!(read(&served, "path=broken").await.0, 404);
    assert_eq!(status_of_an_upload_too_large(&served).await, "413");
    served.host.shutdown().await;
}

/// Announces more than is taken, and sends nothing of it.
async fn status_of_an_upload_too_large(served: &Served) -> String {
    let mut stream = TcpStream::connect(served.url.trim_start_matches("http://")).await.unwrap();
    let head = format!(
        "PUT /v1/sprites/a/fs/write?path=x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\
         Content-Length: 536870913\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply.split(' ').nth(1).unwrap().to_owned()
}
