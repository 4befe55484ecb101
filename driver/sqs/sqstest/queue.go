package sqstest

import (
	"crypto/md5" //nolint:gosec // the protocol has it
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits, https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
const (
	maxBytes       = 1 << 20
	maxBatch       = 10
	maxAttributes  = 10
	maxVisibility  = 12 * 60 * 60
	maxWait        = 20
	deduplication  = 5 * time.Minute
	defaultTimeout = 30
)

type queue struct {
	name       string
	url        string
	fifo       bool
	attributes map[string]string
	tags       map[string]string
	messages   []*message // in the order of sending
	sent       map[string]deduplicated
	wake       chan struct{} // closed and replaced when a message may have become visible
}

type deduplicated struct {
	id string
	at time.Time
}

type message struct {
	id         string
	body       string
	attributes map[string]attribute
	group      string
	duplicate  string
	sentAt     time.Time
	firstAt    time.Time
	received   int
	receipt    string // the newest
	visibleAt  time.Time
}

func (m *message) inFlight(now time.Time) bool { return m.receipt != "" && m.visibleAt.After(now) }

func (s *Server) find(in *input) (*queue, error) {
	name := in.QueueURL[strings.LastIndexByte(in.QueueURL, '/')+1:]
	q := s.queues[name]
	if q == nil {
		return nil, refuse("QueueDoesNotExist", "The specified queue does not exist.")
	}
	return q, nil
}

func (s *Server) createQueue(in *input) (any, error) {
	fifo := strings.HasSuffix(in.QueueName, ".fifo")
	if in.QueueName == "" || len(in.QueueName) > 80 || strings.Trim(strings.TrimSuffix(in.QueueName, ".fifo"), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") != "" {
		return nil, refuse("InvalidParameterValue", "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
	}
	if fifo != (in.Attributes["FifoQueue"] == "true") {
		return nil, refuse("InvalidParameterValue", "The name of a FIFO queue, and no other, ends in .fifo")
	}
	if q := s.queues[in.QueueName]; q != nil {
		for name, value := range in.Attributes {
			if q.attributes[name] != value {
				return nil, refuse("QueueNameExists", "A queue already exists with the same name and a different value for attribute %s", name)
			}
		}
		return map[string]string{"QueueUrl": q.url}, nil
	}
	q := &queue{name: in.QueueName, url: s.URL() + "/000000000000/" + in.QueueName, fifo: fifo, sent: make(map[string]deduplicated), wake: make(chan struct{}), attributes: map[string]string{
		"VisibilityTimeout": strconv.Itoa(defaultTimeout), "MessageRetentionPeriod": "345600", "MaximumMessageSize": strconv.Itoa(maxBytes),
		"ReceiveMessageWaitTimeSeconds": "0", "DelaySeconds": "0", "QueueArn": "arn:aws:sqs:us-east-1:000000000000:" + in.QueueName,
	}}
	if err := q.set(in.Attributes); err != nil {
		return nil, err
	}
	s.queues[q.name] = q
	return map[string]string{"QueueUrl": q.url}, nil
}

func (q *queue) set(attributes map[string]string) error {
	if policy := attributes["RedrivePolicy"]; policy != "" {
		if _, _, err := redrive(policy); err != nil {
			return refuse("InvalidParameterValue", "RedrivePolicy: %v", err)
		}
	}
	maps.Copy(q.attributes, attributes)
	return nil
}

func redrive(policy string) (target string, most int, err error) {
	var p struct {
		Target string      `json:"deadLetterTargetArn"`
		Most   json.Number `json:"maxReceiveCount"`
	}
	if err := json.Unmarshal([]byte(policy), &p); err != nil {
		return "", 0, err
	}
	most, err = strconv.Atoi(p.Most.String())
	return p.Target[strings.LastIndexByte(p.Target, ':')+1:], most, err
}

func (s *Server) getQueueURL(in *input) (any, error) {
	q := s.queues[in.QueueName]
	if q == nil {
		return nil, refuse("QueueDoesNotExist", "The specified queue does not exist.")
	}
	return map[string]string{"QueueUrl": q.url}, nil
}

func (s *Server) listQueues(in *input) (any, error) {
	var urls []string
	for _, name := range slices.Sorted(maps.Keys(s.queues)) {
		if strings.HasPrefix(name, in.QueueNamePrefix) {
			urls = append(urls, s.queues[name].url)
		}
	}
	return map[string]any{"QueueUrls": urls}, nil
}

func (s *Server) deleteQueue(in *input) (any, error) {
	q, err := s.find(in)
	if err == nil {
		delete(s.queues, q.name)
		q.wakeAll()
	}
	return struct{}{}, err
}

func (s *Server) purgeQueue(in *input) (any, error) {
	q, err := s.find(in)
	if err == nil {
		q.messages = nil
	}
	return struct{}{}, err
}

func (s *Server) getQueueAttributes(in *input) (any, error) {
	q, err := s.find(in)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	visible, inFlight := 0, 0
	for _, m := range q.messages {
		if m.inFlight(now) {
			inFlight++
		} else {
			visible++
		}
	}
	all := maps.Clone(q.attributes)
	all["ApproximateNumberOfMessages"], all["ApproximateNumberOfMessagesNotVisible"] = strconv.Itoa(visible), strconv.Itoa(inFlight)
	asked := make(map[string]string)
	for name, value := range all {
		if slices.Contains(in.AttributeNames, "All") || slices.Contains(in.AttributeNames, name) {
			asked[name] = value
		}
	}
	return map[string]any{"Attributes": asked}, nil
}

func (s *Server) setQueueAttributes(in *input) (any, error) {
	q, err := s.find(in)
	if err == nil {
		err = q.set(in.Attributes)
	}
	return struct{}{}, err
}

// wakeAll wakes whoever waits for messages. The caller holds the server's lock.
// maxTags is how many tags a queue has at most,
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-queue-tags.html
const maxTags = 50

func (s *Server) tagQueue(in *input) (any, error) {
	q, err := s.find(in)
	if err != nil {
		return nil, err
	}
	tags := maps.Clone(q.tags)
	if tags == nil {
		tags = make(map[string]string)
	}
	for key, value := range in.Tags {
		if key == "" || len(key) > 128 || len(value) > 256 {
			return nil, refuse("InvalidParameterValue", "A tag has a key of 1 to 128 and a value of at most 256 characters")
		}
		tags[key] = value
	}
	if len(tags) > maxTags {
		return nil, refuse("InvalidParameterValue", "Too many tags added for queue %s", q.name)
	}
	q.tags = tags
	return struct{}{}, nil
}

func (s *Server) untagQueue(in *input) (any, error) {
	q, err := s.find(in)
	if err == nil {
		for _, key := range in.TagKeys {
			delete(q.tags, key)
		}
	}
	return struct{}{}, err
}

func (s *Server) listQueueTags(in *input) (any, error) {
	q, err := s.find(in)
	if err != nil {
		return nil, err
	}
	return map[string]any{"Tags": q.tags}, nil
}

func (q *queue) wakeAll() {
	close(q.wake)
	q.wake = make(chan struct{})
}

func (s *Server) newID() string {
	s.ids++
	return fmt.Sprintf("00000000-0000-4000-8000-%012x", s.ids)
}

func (s *Server) sendMessage(in *input) (any, error) {
	q, err := s.find(in)
	if err != nil {
		return nil, err
	}
	e := entry{MessageBody: in.MessageBody, MessageAttributes: in.MessageAttributes, MessageGroupID: in.MessageGroupID, MessageDeduplicationID: in.MessageDeduplicationID}
	if size := e.size(); size > maxBytes {
		return nil, refuse("InvalidParameterValue", "One or more parameters are invalid. Reason: Message must be shorter than %d bytes, it has %d.", maxBytes, size)
	}
	return s.send(q, &e)
}

func (e *entry) size() int {
	size := len(e.MessageBody)
	for name, a := range e.MessageAttributes {
		size += a.size(name)
	}
	return size
}

// send stores one message.
func (s *Server) send(q *queue, e *entry) (map[string]string, error) {
	switch {
	case e.MessageBody == "":
		return nil, refuse("MissingParameter", "The request must contain the parameter MessageBody.")
	case len(e.MessageAttributes) > maxAttributes:
		return nil, refuse("InvalidParameterValue", "Number of message attributes [%d] exceeds the allowed maximum [%d].", len(e.MessageAttributes), maxAttributes)
	case q.fifo && e.MessageGroupID == "":
		return nil, refuse("MissingParameter", "The request must contain the parameter MessageGroupId.")
	case q.fifo && e.MessageDeduplicationID == "" && q.attributes["ContentBasedDeduplication"] != "true":
		return nil, refuse("InvalidParameterValue", "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly")
	case len(e.MessageGroupID) > 128 || len(e.MessageDeduplicationID) > 128:
		return nil, refuse("InvalidParameterValue", "MessageGroupId and MessageDeduplicationId can be up to 128 characters long.")
	}
	for name, a := range e.MessageAttributes {
		if a.DataType == "" || a.StringValue == "" && len(a.BinaryValue) == 0 {
			return nil, refuse("InvalidParameterValue", "The message attribute '%s' must contain a non-empty value and a type.", name)
		}
	}
	if s.refuse != nil {
		if err := s.refuse(e.MessageBody); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	m := &message{id: s.newID(), body: e.MessageBody, attributes: e.MessageAttributes, group: e.MessageGroupID, duplicate: e.MessageDeduplicationID, sentAt: now}
	known := false
	if q.fifo {
		if m.duplicate == "" {
			m.duplicate = sum([]byte(m.body))
		}
		before, found := q.sent[m.duplicate]
		if known = found && now.Sub(before.at) < deduplication; known {
			m.id = before.id
		} else {
			q.sent[m.duplicate] = deduplicated{m.id, now}
		}
	}
	if !known {
		q.messages = append(q.messages, m)
		q.wakeAll()
	}
	answer := map[string]string{"MessageId": m.id, "MD5OfMessageBody": sum([]byte(m.body))}
	if len(m.attributes) > 0 {
		answer["MD5OfMessageAttributes"] = attributesSum(m.attributes)
	}
	return answer, nil
}

func sum(b []byte) string {
	digest := md5.Sum(b) //nolint:gosec // the protocol has it
	return hex.EncodeToString(digest[:])
}

// attributesSum is what the protocol calls MD5OfMessageAttributes.
func attributesSum(attributes map[string]attribute) string {
	var b []byte
	put := func(value []byte) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(value)))
		b = append(b, value...)
	}
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		a := attributes[name]
		put([]byte(name))
		put([]byte(a.DataType))
		if strings.HasPrefix(a.DataType, "Binary") {
			b = append(b, 2)
			put(a.BinaryValue)
		} else {
			b = append(b, 1)
			put([]byte(a.StringValue))
		}
	}
	return sum(b)
}

// batch runs one action for every entry; each fails or not by itself.
func (s *Server) batch(in *input, do func(q *queue, e *entry) (map[string]string, error)) (any, error) {
	q, err := s.find(in)
	if err != nil {
		return nil, err
	}
	ids := make(map[string]bool)
	size := 0
	for n := range in.Entries {
		ids[in.Entries[n].ID] = true
		size += in.Entries[n].size()
	}
	switch {
	case len(in.Entries) == 0:
		return nil, refuse("EmptyBatchRequest", "There should be at least one entry in the request.")
	case len(in.Entries) > maxBatch:
		return nil, refuse("TooManyEntriesInBatchRequest", "Maximum number of entries per request are %d. You have sent %d.", maxBatch, len(in.Entries))
	case len(ids) < len(in.Entries):
		return nil, refuse("BatchEntryIdsNotDistinct", "Two or more batch entries have the same Id.")
	case size > maxBytes:
		return nil, refuse("BatchRequestTooLong", "Batch requests cannot be longer than %d bytes. You have sent %d bytes.", maxBytes, size)
	}
	successful, failed := []map[string]string{}, []map[string]any{}
	for n := range in.Entries {
		e := &in.Entries[n]
		done, err := do(q, e)
		if err != nil {
			refused := &Error{Code: "InternalFailure", Message: err.Error()}
			_ = errors.As(err, &refused)
			failed = append(failed, map[string]any{"Id": e.ID, "Code": refused.Code, "Message": refused.Message, "SenderFault": true})
			continue
		}
		if done == nil {
			done = make(map[string]string)
		}
		done["Id"] = e.ID
		successful = append(successful, done)
	}
	return map[string]any{"Successful": successful, "Failed": failed}, nil
}

func (s *Server) sendMessageBatch(in *input) (any, error) { return s.batch(in, s.send) }

// receive waits for messages for as long as it was asked to.
func (s *Server) receive(r *http.Request, in *input) (any, error) {
	if in.MaxNumberOfMessages == 0 {
		in.MaxNumberOfMessages = 1
	}
	if in.MaxNumberOfMessages < 1 || in.MaxNumberOfMessages > maxBatch || in.WaitTimeSeconds < 0 || in.WaitTimeSeconds > maxWait {
		return nil, refuse("InvalidParameterValue", "MaxNumberOfMessages must be from 1 to %d and WaitTimeSeconds from 0 to %d", maxBatch, maxWait)
	}
	deadline := time.Now().Add(time.Duration(in.WaitTimeSeconds) * time.Second)
	for {
		s.mu.Lock()
		q, err := s.find(in)
		if err != nil {
			s.mu.Unlock()
			return nil, err
		}
		got, next := s.take(q, in, time.Now())
		wake := q.wake
		s.mu.Unlock()
		left := time.Until(deadline)
		if len(got) > 0 || left <= 0 {
			return map[string]any{"Messages": got}, nil
		}
		timer := time.NewTimer(min(left, next))
		select {
		case <-wake:
		case <-timer.C:
		case <-r.Context().Done():
		case <-s.closed:
			deadline = time.Now()
		}
		timer.Stop()
		if r.Context().Err() != nil {
			return nil, r.Context().Err()
		}
	}
}

// take gives out what is visible, and says how long until more may be.
func (s *Server) take(q *queue, in *input, now time.Time) (got []map[string]any, next time.Duration) {
	next = time.Hour
	timeout, err := strconv.Atoi(q.attributes["VisibilityTimeout"])
	if err != nil {
		timeout = defaultTimeout
	}
	if in.VisibilityTimeout != nil {
		timeout = *in.VisibilityTimeout
	}
	blocked := make(map[string]bool)
	for _, m := range q.messages {
		if m.inFlight(now) {
			next = min(next, m.visibleAt.Sub(now))
			if q.fifo {
				blocked[m.group] = true
			}
		}
	}
	target, most := "", 0
	if policy := q.attributes["RedrivePolicy"]; policy != "" {
		target, most, _ = redrive(policy) // it was checked when it was set
	}
	for _, m := range slices.Clone(q.messages) {
		if len(got) == in.MaxNumberOfMessages {
			break
		}
		if m.inFlight(now) || q.fifo && blocked[m.group] {
			continue
		}
		if dead := s.queues[target]; dead != nil && m.received >= most {
			q.remove(m)
			dead.messages = append(dead.messages, &message{id: m.id, body: m.body, attributes: m.attributes, group: m.group, duplicate: m.duplicate, sentAt: m.sentAt, received: 0})
			dead.wakeAll()
			continue
		}
		m.received++
		if m.received == 1 {
			m.firstAt = now
		}
		m.receipt = fmt.Sprintf("%s#%d", m.id, m.received)
		m.visibleAt = now.Add(time.Duration(timeout) * time.Second)
		system := map[string]string{
			"SentTimestamp": strconv.FormatInt(m.sentAt.UnixMilli(), 10), "ApproximateReceiveCount": strconv.Itoa(m.received),
			"ApproximateFirstReceiveTimestamp": strconv.FormatInt(m.firstAt.UnixMilli(), 10), "SenderId": "sqstest",
		}
		if q.fifo {
			system["MessageGroupId"], system["MessageDeduplicationId"] = m.group, m.duplicate
		}
		answer := map[string]any{"MessageId": m.id, "ReceiptHandle": m.receipt, "Body": m.body, "MD5OfBody": sum([]byte(m.body)), "Attributes": system}
		if len(m.attributes) > 0 {
			answer["MessageAttributes"], answer["MD5OfMessageAttributes"] = m.attributes, attributesSum(m.attributes)
		}
		got = append(got, answer)
	}
	return got, next
}

func (q *queue) remove(m *message) {
	q.messages = slices.DeleteFunc(q.messages, func(other *message) bool { return other == m })
}

// held finds the message that a receipt handle stands for.
func (q *queue) held(receipt string) (*message, error) {
	for _, m := range q.messages {
		if m.receipt == receipt && receipt != "" {
			return m, nil
		}
	}
	return nil, refuse("ReceiptHandleIsInvalid", "The input receipt handle is invalid.")
}

func (s *Server) delete(q *queue, e *entry) (map[string]string, error) {
	m, err := q.held(e.ReceiptHandle)
	if err != nil {
		return nil, err
	}
	q.remove(m)
	q.wakeAll() // its group may go on
	return nil, nil
}

func (s *Server) deleteMessage(in *input) (any, error) {
	q, err := s.find(in)
	if err == nil {
		_, err = s.delete(q, &entry{ReceiptHandle: in.ReceiptHandle})
	}
	return struct{}{}, err
}

func (s *Server) deleteMessageBatch(in *input) (any, error) { return s.batch(in, s.delete) }

func (s *Server) change(q *queue, e *entry) (map[string]string, error) {
	if e.VisibilityTimeout == nil || *e.VisibilityTimeout < 0 || *e.VisibilityTimeout > maxVisibility {
		return nil, refuse("InvalidParameterValue", "VisibilityTimeout must be from 0 to %d", maxVisibility)
	}
	m, err := q.held(e.ReceiptHandle)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if !m.inFlight(now) {
		return nil, refuse("MessageNotInflight", "The specified message isn't in flight.")
	}
	m.visibleAt = now.Add(time.Duration(*e.VisibilityTimeout) * time.Second)
	q.wakeAll()
	return nil, nil
}

func (s *Server) changeVisibility(in *input) (any, error) {
	q, err := s.find(in)
	if err == nil {
		_, err = s.change(q, &entry{ReceiptHandle: in.ReceiptHandle, VisibilityTimeout: in.VisibilityTimeout})
	}
	return struct{}{}, err
}

func (s *Server) changeVisibilityBatch(in *input) (any, error) { return s.batch(in, s.change) }
