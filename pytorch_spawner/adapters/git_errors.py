"""What git says when a source cannot be fetched, as sentences for the person who named the source.

Git's own words go to the log only, without what a URL may hold of a name, password or token.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from pytorch_spawner.adapters.git_run import GitFailed
from pytorch_spawner.core.course_notes import shown
from pytorch_spawner.errors import SourceUnusable

_STILL: Final = "What was fetched before is still there."
# In this order: the first that fits. All of git 2.30 to 2.50 under LC_ALL=C, curl and OpenSSH.
_CAUSES: Final = tuple(
    (cause, re.compile(pattern, re.IGNORECASE), sentence)
    for cause, pattern, sentence in (
        (
            "disk-full",
            r"No space left on device|Disk quota exceeded",
            "There is no room left on the lab's machine to fetch {where}. Ask an admin to make "
            "room.",
        ),
        (
            "name-unknown",
            r"Could ?n[o']t resolve|unable to look up|Name or service not known"
            r"|failure in name resolution|nodename nor servname",
            "The name of the server of {where} is not known. Check the URL; if it is right, the "
            "lab's machine has no way out or no name server: ask an admin. " + _STILL,
        ),
        (
            "timed-out",
            r"timed out|Operation too slow|Timeout was reached",
            "The server of {where} did not answer in time. Try again later; if it never answers, "
            "ask an admin whether the lab's machine may reach it. " + _STILL,
        ),
        (
            "certificate",
            r"SSL certificate|certificate verif|SSL: no alternative|unable to get local issuer",
            "The server of {where} has a certificate that the lab's machine does not trust. Ask an "
            "admin to add the site's CA to the machine.",
        ),
        (
            "host-key",
            r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
            "The lab's machine does not know the ssh key of the server of {where}. Ask an admin to "
            "add it to the known_hosts of the lab's account.",
        ),
        (
            "refused",
            r"Connection refused|Couldn't connect to server|Failed to connect to"
            r"|No route to host|Network is unreachable|Connection reset|unable to connect to",
            "The server of {where} refuses the connection: it is off, or nothing listens there. "
            "Check the URL, or try again later. " + _STILL,
        ),
        (
            "password",
            r"could not read (Username|Password)|terminal prompts disabled|Authentication failed"
            r"|returned error: 40[13]|Permission denied \(|unable to read askpass"
            r"|HTTP Basic: Access denied",
            "The server of {where} asks for a password, and the lab has none to give. If the "
            "repository does not exist, many servers ask, too: check the URL. Make it readable "
            "for everybody, or name it with ssh:// and let it be read with the ssh key of the "
            "lab's account, or have it copied to a directory of the lab's machine.",
        ),
        (
            "not-found",
            r"returned error: 404|repository .{0,500} not found|Repository not found"
            r"|not exported|project you were looking for could not be found",
            "There is no repository at {where}. Check the URL.",
        ),
        (
            "redirected",
            r"unable to update url base from redirection|redirect"
            r"|Protocol \"?\w+\"? (not|disabled)",
            "The server of {where} sends the lab on to another address that it may not follow. "
            "Name the address at which the repository is now.",
        ),
        (
            "protocol",
            r"transport '[^']{0,50}' not allowed|strange (hostname|port)",
            "{where} is nothing that the lab may fetch from. Use a URL that begins with https://, "
            "http://, ssh:// or git://.",
        ),
        (
            "server-error",
            r"returned error: (429|5\d\d)",
            "The server of {where} answered with an error of its own. Try again later. " + _STILL,
        ),
        (
            "branch-missing",
            r"couldn't find remote ref",
            "The branch was removed from {where} while it was fetched. Try again. " + _STILL,
        ),
        (
            "damaged",
            r"fsck error|bad object|object corrupt|index-pack failed|unpack-objects failed"
            r"|did not send all necessary|missing (blob|tree|commit)|pack has bad|loose object"
            r"|bad tree|unable to read tree|not our ref|early EOF|inflate",
            "The repository at {where} is damaged, or was built to harm: git refuses what it holds"
            "{fault}. Clone it, run git fsck, and commit a sound tree.",
        ),
        (
            "not-git",
            r"not valid: is this a git|not a git repository|does not appear to be a git"
            r"|invalid server response|protocol error|bad line length|expected flush|Empty reply"
            r"|did not send|hung up|Could not read from remote|bad config|not valid: could not",
            "What answers at {where} is no git repository. Use the URL that git clone takes.",
        ),
    )
)
_FAULT: Final = re.compile(r"(?:error|fatal): (?:object )?[0-9a-f]*:? ?(\w{4,40}): (.{1,120})")


def shown_url(url: str) -> str:
    """A URL for people: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        return shown(f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}", 200)
    except ValueError:
        return "the URL"


def explained(error: GitFailed, where: str, url: str = "") -> SourceUnusable:
    """The sentence for what git said.

    Args:
        error: How git ended.
        where: The source as people may see it, see ``shown_url``.
        url: The source as git saw it, to take it out of what is logged.
    """
    said = " ".join(_without_secrets(error.said, url).split())
    for cause, pattern, sentence in _CAUSES:
        if pattern.search(said):
            fault = ""
            if found := _FAULT.search(said):
                fault = f" ({shown(found[1], 40)}: {shown(found[2])})"
            return SourceUnusable(
                sentence.format(where=where, fault=fault), cause=cause, detail=said[-500:]
            )
    return SourceUnusable(
        f"Git could not fetch {where}. The hub's log has git's own words: ask an admin. {_STILL}",
        cause="git-failed",
        detail=f"status {error.code}: {said[-500:]}",
    )


def _without_secrets(said: str, url: str) -> str:
    if url:
        parts = urlsplit(url)
        user = parts.netloc.rpartition("@")[0]
        for secret in (user, unquote(user), quote(user), parts.query, parts.fragment):
            # Of one or two characters it is no secret, and would spoil every word.
            if len(secret) > 2:
                said = said.replace(secret, "***")
    # Whatever else stands before an @ in a URL, such as one that the server redirects to.
    return re.sub(r"://[^\s/@]{1,500}@", "://***@", said)
