"""Keep the consent log append-only, and `Subscriber.suppressed` in step with the suppressions."""

from django.db import migrations

FORWARD = """
CREATE FUNCTION refuse_consent_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('masthead.erasing', true) = 'on' THEN
        RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
    END IF;
    RAISE EXCEPTION 'the consent log is append-only' USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER consent_append_only BEFORE UPDATE OR DELETE ON subscribers_consent
    FOR EACH ROW EXECUTE FUNCTION refuse_consent_change();

CREATE FUNCTION mark_suppressed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE subscribers_subscriber SET suppressed = (TG_OP = 'INSERT')
     WHERE address_hash = CASE WHEN TG_OP = 'INSERT' THEN NEW.address_hash ELSE OLD.address_hash END;
    RETURN NULL;
END $$;
CREATE TRIGGER suppression_marks AFTER INSERT OR DELETE ON subscribers_suppression
    FOR EACH ROW EXECUTE FUNCTION mark_suppressed();

CREATE FUNCTION inherit_suppressed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.suppressed := EXISTS (SELECT 1 FROM subscribers_suppression s WHERE s.address_hash = NEW.address_hash);
    RETURN NEW;
END $$;
CREATE TRIGGER subscriber_inherits BEFORE INSERT OR UPDATE OF address_hash ON subscribers_subscriber
    FOR EACH ROW EXECUTE FUNCTION inherit_suppressed();
"""
BACKWARD = """
DROP TRIGGER consent_append_only ON subscribers_consent;
DROP TRIGGER suppression_marks ON subscribers_suppression;
DROP TRIGGER subscriber_inherits ON subscribers_subscriber;
DROP FUNCTION refuse_consent_change();
DROP FUNCTION mark_suppressed();
DROP FUNCTION inherit_suppressed();
"""


class Migration(migrations.Migration):
    dependencies = [("subscribers", "0001_initial")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
