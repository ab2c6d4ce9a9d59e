"""Uses the official client as its documentation shows: listens over Socket Mode and answers each mention once."""

import os
import threading

from slack_sdk import WebClient
from slack_sdk.socket_mode import SocketModeClient
from slack_sdk.socket_mode.response import SocketModeResponse

url = os.environ["SLACK_API_URL"]
web = WebClient(token=os.environ["SLACK_BOT_TOKEN"], base_url=url)
app = WebClient(base_url=url)
client = SocketModeClient(app_token=os.environ["SLACK_APP_TOKEN"], web_client=app)
over = threading.Event()


def hear(client, request):
    client.send_socket_mode_response(SocketModeResponse(envelope_id=request.envelope_id))
    event = request.payload["event"]
    if event["type"] != "app_mention":
        return
    words = event["text"].split("> ", 1)[1]
    channel, ts = event["channel"], event["ts"]
    web.reactions_add(channel=channel, timestamp=ts, name="eyes")
    posted = web.chat_postMessage(
        channel=channel, thread_ts=ts, text=f"heard: {words}",
        metadata={"event_type": "test", "event_payload": {"key": words}},
    )
    thread = web.conversations_replies(channel=channel, ts=ts, include_all_metadata=True, limit=1)
    assert len(thread["messages"]) == 1 and thread["has_more"], thread
    cursor = thread["response_metadata"]["next_cursor"]
    rest = web.conversations_replies(channel=channel, ts=ts, include_all_metadata=True, cursor=cursor)
    assert rest["messages"][0]["metadata"]["event_payload"]["key"] == words, rest
    web.chat_update(channel=channel, ts=posted["ts"], text=f"heard: {words}", parse="none")
    if words == "bye":
        over.set()


assert web.auth_test()["bot_id"] == "BJANE"
assert web.users_info(user="UANN")["user"]["name"] == "ann"
client.socket_mode_request_listeners.append(hear)
client.connect()
assert over.wait(60), "the last mention never came"
client.close()
print("heard, answered and reconnected")
