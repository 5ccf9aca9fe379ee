"""What visitors are told of what is kept, and the routes by which they see, count and delete it: /api/visitor, /api/receipts.

Deletion ends the visitor's runs first, forgets those in memory, then erases (`storage.visitors`) and answers with a receipt. The
cookie stays: what the visitor sends later is kept under the same owner, and can be deleted again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request

from app.access import RateLimit, address_of, check_origin, visitor_of
from app.errors import Problem
from storage.retention import Policy
from storage.visitors import Receipt

if TYPE_CHECKING:
    from app.service import Service
    from app.settings import Settings

CHECK_RATE = 60  # receipts that one address may ask for in a minute


def policy_of(settings: Settings) -> Policy:
    """How long texts are kept, by the settings (whose form is checked already)."""
    return Policy.parse(settings.retention, settings.retention_failed, settings.retention_reviewed)


def told(settings: Settings) -> dict[str, Any]:
    """For /api/info: whether a visitor may choose that a run isn't logged, and for how many seconds texts are kept (null: until
    somebody deletes them)."""
    return {"log_optional": settings.allow_unlogged, **policy_of(settings).as_dict()}


def notice(settings: Settings) -> dict[str, str]:
    """What is kept, who reads it, how long, and how to delete it: a few sentences in each language."""
    policy = policy_of(settings)
    ages = [policy.kept, policy.failed, policy.reviewed]
    lists = [(english, chinese) for english, chinese in (_age_words(age) for age in ages)]
    (kept_en, kept_zh), (failed_en, failed_zh), (reviewed_en, reviewed_zh) = lists
    english = "Prompts and outputs are stored on this server, and its staff may read and correct them. "
    chinese = "您输入的内容和模型的输出会保存在本服务器上，工作人员可能会阅读和修改。"
    english += f"They are kept {kept_en}"
    chinese += f"保存时间：{kept_zh}"
    if policy.failed != policy.kept:
        english += f", those of failed or stopped runs {failed_en}"
        chinese += f"；失败或中止的运行：{failed_zh}"
    if policy.reviewed != policy.kept:
        english += f", reviewed ones {reviewed_en}"
        chinese += f"；经过审阅的：{reviewed_zh}"
    english += ". You can delete single conversations or all your data at any time."
    chinese += "。您可以随时删除单个对话或您的全部数据。"
    if settings.allow_unlogged:
        english += " You can also choose that what you send isn't kept."
        chinese += "您也可以选择不保存所发送的内容。"
    return {"en": english, "zh": chinese}


def _age_words(age: timedelta | None) -> tuple[str, str]:
    if age is None:
        return "until they are deleted", "直到被删除"
    days, rest = divmod(age.total_seconds(), 86400)
    if days and not rest:
        return f"for {days:g} day{'' if days == 1 else 's'}", f"{days:g} 天"
    hours = age.total_seconds() / 3600
    return f"for {hours:g} hour{'' if hours == 1 else 's'}", f"{hours:g} 小时"


async def delete_visitor(service: Service, visitor: str, by: str) -> Receipt:
    """End a visitor's runs and erase all that is kept of them. Raises Problem, StorageError; then it may be asked for again."""
    if service.ledger.holds_runs:
        # They would come into the database behind the deletion.
        message = "Some runs wait to be written. Your data can be deleted when they are; please try again in a moment."
        raise Problem("database_unavailable", message, retry_after_s=5.0)
    await service.hub.end_all(visitor)
    service.hub.forget(visitor=visitor)
    receipt = await service.record.delete_visitor(visitor, by=by)
    service.retention.soon()
    return receipt


def routes(service: Service) -> APIRouter:
    """All routes of this file, for one service."""
    router = APIRouter()
    checking = RateLimit(CHECK_RATE)

    @router.get("/api/visitor")
    async def mine(request: Request) -> dict[str, Any]:
        """How much is kept of this visitor: {"runs", "conversations", "shared_pages"}."""
        return await service.record.visitor_counts(visitor_of(request).id)

    @router.delete("/api/visitor")
    async def forget(request: Request) -> dict[str, Any]:
        """Delete all that is kept of this visitor; the answer is a receipt {"id", "moment", "by", "erased", "hash"}. From this
        site's pages only."""
        check_origin(request, service.settings.allowed_origins)
        return (await delete_visitor(service, visitor_of(request).id, "visitor")).as_dict()

    @router.get("/api/receipts/{receipt}")
    async def check(receipt: str, request: Request) -> dict[str, Any]:
        """A receipt that was given out, as it was given, and `texts_left`: how many of the texts it names are there (again): 0."""
        if wait := checking.wait(address_of(request)):
            raise Problem("rate_limited", limit=checking.per_minute, retry_after_s=round(wait, 2))
        found, left = await service.record.check_receipt(receipt)
        return {"receipt": found.as_dict(), "texts_left": left}

    return router
