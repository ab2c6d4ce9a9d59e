//! One message from the terminal, from handing it in to its outcome.

use super::line::Hushed;
use super::view::View;
use super::{Interrupts, Message, Session};
use crate::app::App;
use crate::chat::Reply;
use crate::desk::Target;
use crate::job::JobReport;

/// How waiting for a job ended.
pub enum End {
    Told(Box<JobReport>),
    /// The person did not want to wait for the cancellation either.
    GaveUp,
    /// The service stopped by itself. What becomes of the job is in the log.
    ServiceFailed,
}

/// Hands the message in and shows what becomes of it. The first interrupt cancels the job, the second ends the waiting.
pub async fn run(app: &App, session: &Session, message: Message, interrupts: &mut Interrupts) -> End {
    let _hushed = Hushed::now();
    let mut view = View::on_stderr();
    let mut told = session.send(app, message).await;
    let mut cancelling = false;
    loop {
        tokio::select! {
            biased;
            reply = told.recv() => match reply {
                Some(Reply::Accepted { .. }) => view.say("asking for a runner".into()),
                Some(Reply::Progress { progress, .. }) => {
                    // A job that is being cancelled may still have news; what matters is said.
                    if !cancelling {
                        view.progress(&progress);
                    }
                }
                Some(Reply::Ended(report)) => return End::Told(report),
                None => return End::ServiceFailed,
            },
            () = interrupts.next() => {
                if cancelling {
                    return End::GaveUp;
                }
                cancelling = true;
                view.say("cancelling: the agent is being stopped (again to stop waiting for that)".into());
                let target = Target::Conversation(session.conversation.clone());
                app.cancel(target, session.requester.clone()).await;
            }
            () = app.failed() => return End::ServiceFailed,
        }
    }
}
