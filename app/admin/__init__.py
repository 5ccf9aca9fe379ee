"""The pages and routes under /admin, for reviewers and administrators."""
