"""The one table of error kinds: kind -> HTTP status, websocket close code, sentence and next step for a person.

Whatever goes wrong reaches a visitor as a `Problem`: the typed errors of the model and of storage keep their kind, and
anything unexpected becomes `internal` with an incident number that stands in the log beside the traceback. A traceback
never leaves the server, and the text of an unexpected exception, which may quote a prompt, is logged at debug only.
"""

from __future__ import annotations

import logging
import secrets
import traceback
from dataclasses import dataclass
from typing import Any

from engine.errors import GLMError
from storage import StorageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """`status`: HTTP. `close`: websocket close code. `en`, `zh`: what it means, for a person; `step_en`, `step_zh`: what they can
    do. `retry`: same again may work."""

    status: int
    close: int
    en: str
    zh: str
    step_en: str
    step_zh: str
    retry: bool = False


TABLE: dict[str, Entry] = {
    # What was sent
    "bad_request": Entry(
        422,
        4400,
        "The server can't use this input.",
        "服务器无法使用这样的输入。",
        "Change what the message below names, then send it again.",
        "请按下面的提示修改后重新发送。",
    ),
    "too_large": Entry(
        413,
        1009,
        "The message is too large.",
        "消息太大。",
        "Shorten the text, then send it again.",
        "请缩短文字后重新发送。",
    ),
    "unknown_mask": Entry(
        422,
        4400,
        "There is an unknown blank in the text. Use [MASK], [sMASK] or [gMASK].",
        "文字中有不认识的空。请使用 [MASK]、[sMASK] 或 [gMASK]。",
        "Correct the blank, then fill again.",
        "请改正空的写法后重新填空。",
    ),
    "prompt_too_long": Entry(
        422,
        4400,
        "The text is too long for this model.",
        "文字超出了模型的长度。",
        "Shorten the text, or begin a new chat.",
        "请缩短文字，或开始新的对话。",
    ),
    "unsupported": Entry(
        422,
        4400,
        "This model or server can't do that.",
        "该模型或服务器不支持此操作。",
        "Use another tab or another setting.",
        "请换一个标签页或换一项设置。",
    ),
    "not_found": Entry(
        404,
        4404,
        "There is nothing here, or it isn't yours.",
        "这里没有内容，或者它不属于您。",
        "Open the page's list of your conversations to see what there is.",
        "请打开历史列表，查看您已有的内容。",
    ),
    "method_not_allowed": Entry(
        405,
        4405,
        "This address doesn't take that method.",
        "此地址不接受该方法。",
        "See the README for what this address takes.",
        "请查阅说明文档中该地址支持的方法。",
    ),
    "forbidden": Entry(
        403,
        4403,
        "A page of another site may not do this.",
        "其他网站的页面不能这样做。",
        "Open the playground itself and do it there.",
        "请直接打开本站页面再操作。",
    ),
    "login_needed": Entry(
        401,
        4401,
        "Log in first.",
        "请先登录。",
        "Log in, then do it again.",
        "请登录后重新操作。",
    ),
    "role_needed": Entry(
        403,
        4403,
        "Your account may not do this.",
        "您的账户无权进行此操作。",
        "Ask an administrator of this server.",
        "请联系本服务器的管理员。",
    ),
    "conflict": Entry(
        409,
        4409,
        "This exists already.",
        "它已经存在。",
        "Reload the page to see what is there now.",
        "请刷新页面，查看当前内容。",
    ),
    # Too much at once
    "rate_limited": Entry(
        429,
        4429,
        "That was too much in a short time. Please wait a moment.",
        "短时间内请求过多，请稍等再试。",
        "Nothing is lost; it can be sent again in a moment.",
        "内容没有丢失，稍等即可重新发送。",
        retry=True,
    ),
    "queue_full": Entry(
        429,
        1013,
        "Too many people are waiting just now.",
        "现在排队的人太多，请稍后再试。",
        "Nothing is lost; it can be sent again in a moment.",
        "内容没有丢失，稍等即可重新发送。",
        retry=True,
    ),
    "overloaded": Entry(
        503,
        1013,
        "The server has more work than it can do.",
        "服务器任务过多，请稍后再试。",
        "Nothing is lost; try again in a minute.",
        "内容没有丢失，请一分钟后重试。",
        retry=True,
    ),
    "not_ready": Entry(
        503,
        1013,
        "The model is still loading.",
        "模型仍在加载，请稍后再试。",
        "Nothing is lost; the page says when the model is ready.",
        "内容没有丢失，模型就绪后页面会提示。",
        retry=True,
    ),
    # The model
    "worker_died": Entry(
        503,
        1011,
        "The model's process stopped and is being started again.",
        "模型进程意外停止，正在重新启动，请重试。",
        "Try again in a few seconds; what came so far is kept.",
        "几秒后重试即可，已有的文字会保留。",
        retry=True,
    ),
    "non_finite_logits": Entry(
        500,
        1011,
        "The model computed something that is not a number.",
        "模型算出了无效数值，请换一组设置再试。",
        "Try again with the preset “Balanced”.",
        "请选择“均衡”预设后重试。",
    ),
    "timeout": Entry(
        504,
        1011,
        "The answer took too long and was given up.",
        "生成时间过长，已放弃。",
        "Try again with a shorter longest answer.",
        "请把最长输出调小后重试。",
        retry=True,
    ),
    "model_not_found": Entry(
        503,
        1011,
        "The model was not found on the server.",
        "服务器上找不到该模型。",
        "Tell the people who run this server.",
        "请告知本服务器的管理者。",
    ),
    "bad_model": Entry(
        503,
        1011,
        "The model's files on the server can't be used.",
        "服务器上的模型文件无法使用。",
        "Tell the people who run this server.",
        "请告知本服务器的管理者。",
    ),
    "bad_data": Entry(
        422,
        4400,
        "This data can't be used.",
        "这些数据无法使用。",
        "Correct the data, then send it again.",
        "请改正数据后重新发送。",
    ),
    "interrupted": Entry(
        503,
        1012,
        "The server was restarted in the middle of this answer.",
        "回答过程中服务器重启了。",
        "Try again; what came so far is kept.",
        "请重试，已有的文字会保留。",
        retry=True,
    ),
    # Storage
    "database_unavailable": Entry(
        503,
        1011,
        "The server can't keep a record just now, so it takes no work.",
        "服务器暂时无法保存记录，因此不接受请求。",
        "Nothing is lost; try again in a minute.",
        "内容没有丢失，请一分钟后重试。",
        retry=True,
    ),
    "disk_full": Entry(
        507,
        1011,
        "The server's disk is full, so it takes no work.",
        "服务器磁盘已满，因此不接受请求。",
        "Tell the people who run this server.",
        "请告知本服务器的管理者。",
    ),
    "database_newer": Entry(
        503,
        1011,
        "The server's database belongs to a newer program.",
        "服务器的数据库属于更新版本的程序。",
        "Tell the people who run this server.",
        "请告知本服务器的管理者。",
    ),
    "internal": Entry(
        500,
        1011,
        "Something went wrong on the server. It has been noted.",
        "服务器出错了，已记录。",
        "Try again. If it happens again, tell the people who run this server the incident's number.",
        "请重试；若再次出现，请把事件编号告知本服务器的管理者。",
        retry=True,
    ),
}


class Problem(Exception):
    """An error as a visitor gets it: `kind` of TABLE, a sentence that names the field and its limit, retry advice."""

    def __init__(
        self,
        kind: str,
        message: str | None = None,
        *,
        field: str | None = None,
        limit: int | float | str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        assert kind in TABLE, kind
        self.kind = kind
        self.message = message or TABLE[kind].en
        self.field = field
        self.limit = limit
        self.retry_after_s = retry_after_s
        super().__init__(self.message)

    @property
    def entry(self) -> Entry:
        return TABLE[self.kind]

    def as_dict(self) -> dict[str, Any]:
        """The fields of an `error` event and of an HTTP error body; `field` and `limit` only where there are any."""
        body: dict[str, Any] = {"kind": self.kind, "message": self.message, "retry_after_s": self.retry_after_s}
        if self.field is not None:
            body["field"] = self.field
        if self.limit is not None:
            body["limit"] = self.limit
        return body


def problem(error: BaseException) -> Problem:
    """What a visitor is told of an exception; an unexpected one is logged here, with its incident number."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, GLMError):
        return Problem(
            error.kind, error.message, field=error.field, limit=error.limit, retry_after_s=error.retry_after_s
        )
    if isinstance(error, StorageError):
        return Problem(error.kind, error.message, field=error.field, limit=error.limit)
    return Problem("internal", f"{TABLE['internal'].en} Incident {incident(error)}.")


def incident(error: BaseException) -> str:
    """Log an unexpected exception without its text, which may quote what a visitor typed; returns its number."""
    number = secrets.token_hex(4)
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("incident %s: %s\n%s", number, type(error).__name__, frames)
    logger.debug("incident %s: %s", number, error)
    return number


def sentences() -> dict[str, dict[str, Any]]:
    """The table for clients: kind -> {en, zh, step: {en, zh}, retry, status}."""
    return {
        kind: {
            "en": e.en,
            "zh": e.zh,
            "step": {"en": e.step_en, "zh": e.step_zh},
            "retry": e.retry,
            "status": e.status,
        }
        for kind, e in TABLE.items()
    }
