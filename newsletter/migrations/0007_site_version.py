"""Count the site's version up with what the archive shows of issues. What sending itself notes down shows nowhere."""

from django.db import migrations

TRIGGERS = """
CREATE CONSTRAINT TRIGGER version_issue_added AFTER INSERT ON newsletter_issue DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.started_at IS NOT NULL) EXECUTE FUNCTION bump_site_version();
CREATE CONSTRAINT TRIGGER version_issue_removed AFTER DELETE ON newsletter_issue DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.started_at IS NOT NULL) EXECUTE FUNCTION bump_site_version();
CREATE CONSTRAINT TRIGGER version_issue_changed AFTER UPDATE ON newsletter_issue DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (
        (OLD.started_at IS NOT NULL OR NEW.started_at IS NOT NULL)
        AND (OLD.number, OLD.subject, OLD.preheader, OLD.introduction, OLD.started_at, OLD.state = 'cancelled')
            IS DISTINCT FROM
            (NEW.number, NEW.subject, NEW.preheader, NEW.introduction, NEW.started_at, NEW.state = 'cancelled')
    ) EXECUTE FUNCTION bump_site_version();

CREATE FUNCTION bump_site_version_by_issue_post() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM newsletter_issue WHERE started_at IS NOT NULL AND id IN (
        CASE WHEN TG_OP <> 'INSERT' THEN OLD.issue_id END, CASE WHEN TG_OP <> 'DELETE' THEN NEW.issue_id END)) THEN
        PERFORM count_site_version_up();
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER version_issue_posts_changed AFTER INSERT OR UPDATE OR DELETE ON newsletter_issuepost
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION bump_site_version_by_issue_post();
"""
BACKWARD = """
DROP TRIGGER version_issue_added ON newsletter_issue;
DROP TRIGGER version_issue_removed ON newsletter_issue;
DROP TRIGGER version_issue_changed ON newsletter_issue;
DROP TRIGGER version_issue_posts_changed ON newsletter_issuepost;
DROP FUNCTION bump_site_version_by_issue_post();
"""


class Migration(migrations.Migration):
    dependencies = [("newsletter", "0006_safe"), ("posts", "0006_site_version")]

    operations = [migrations.RunSQL(TRIGGERS, BACKWARD)]
