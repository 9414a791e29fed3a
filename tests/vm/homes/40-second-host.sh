# While one host uses the home, another one that may write as well is refused, and the lender says why.
is active
export STATE_DIRECTORY=/tmp/second
mkdir -p "$STATE_DIRECTORY"
pair "$second" --name second
on_target "storagetm host add $second --writable --replace"
refused storagetm attach --home=alice lender
on_target 'cat /tmp/events' | grep '"event":"refused"' | grep -F "$second" | grep 'another host uses this home'
[ "$(cat /home/alice/answer)" = 'hello from the client' ]
