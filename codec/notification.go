package codec

// What Amazon SNS puts around a message unless raw delivery is on:
// https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html
const (
	notification            = "Notification"
	subscriptionConfirmed   = "SubscriptionConfirmation"
	unsubscriptionConfirmed = "UnsubscribeConfirmation"
)

// isNotification reports whether the body is one of SNS's own messages. Four
// members decide it, so that no payload is taken for one.
func (r *reading) isNotification() bool {
	m := &r.members
	return m.isText(memberNotificationType) && m.isText(memberNotificationID) &&
		m.isText(memberNotificationTopic) && m.isText(memberNotificationMessage)
}

// unwrap replaces the body by the message of a notification, and takes over its
// attributes as headers. A notification inside a notification is not opened.
func (r *reading) unwrap() error {
	m := &r.members
	switch kind := m.text(memberNotificationType, notification); kind {
	case notification:
	case subscriptionConfirmed, unsubscriptionConfirmed:
		return malformed("an SNS %s, not an event", kind)
	default:
		return malformed("an SNS message of type %s", quotable(kind))
	}
	r.notificationID = m.text(memberNotificationID, "")
	r.notifiedAt, _ = m.moment(memberNotificationTime)
	r.readAttributes(m.raw(memberNotificationAttributes))
	if failure := r.open(m.unquoted(memberNotificationMessage)); failure != nil {
		return &FormatError{Reason: "in an SNS notification: " + failure.Reason, Err: failure.Err}
	}
	return nil
}

// readAttributes reads {"eventType":{"Type":"String","Value":"…"},…}. It is
// part of a body that was found valid.
func (r *reading) readAttributes(text []byte) {
	if len(text) == 0 || text[0] != '{' {
		return
	}
	_ = eachMember(text, 1, func(name []byte, value span) {
		field := r.metadata.field(string(unescapedName(name)))
		if field == nil || text[value.from] != '{' {
			return
		}
		if said, isText := attributeValue(text[value.from:value.to]); isText {
			*field = said
		}
	})
}

// attributeValue is the value of one attribute; bytes are not text.
func attributeValue(text []byte) (said string, isText bool) {
	isText = true
	_ = eachMember(text, 2, func(name []byte, value span) {
		content := text[value.from:value.to]
		switch string(unescapedName(name)) {
		case "Type":
			isText = string(content) != `"Binary"`
		case "Value":
			said = ""
			if content[0] == '"' {
				said = string(appendUnquoted(nil, content[1:len(content)-1]))
			}
		}
	})
	return said, isText
}
