package sqs

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/tidings-go/tidings/driver"
)

// Limits of messages and batches, body and attributes together.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
// https://docs.aws.amazon.com/general/latest/gr/sns.html
const (
	queueLimit    = 1 << 20
	topicLimit    = 256 << 10
	batchSize     = 10
	maxAttributes = 10
	stringType    = "String"
	// mostQueueName is the length of a queue's name in characters.
	mostQueueName = 80
	// typesRoom is what the types of attributes need, which count too.
	typesRoom = maxAttributes * len(stringType)
)

// errContent says that a text cannot be sent.
var errContent = errors.New("SQS takes the characters that XML 1.0 has, and no other")

// outgoing is one message as it is sent.
type outgoing struct {
	body       string
	attributes driver.Headers
	group      string // "" where no order is kept
	duplicate  string
	size       int

	call  *call
	index int // in the call
}

// prepare makes what is sent of a message, or says why it cannot be.
func prepare(m *driver.Message, fifo bool) (*outgoing, error) {
	body, err := text(m.Body)
	if err != nil {
		return nil, err
	}
	o := &outgoing{body: body, size: len(body)}
	for _, h := range m.Headers {
		if h.Value == "" {
			continue // SQS has no empty ones
		}
		value, err := text([]byte(h.Value))
		if err != nil {
			return nil, fmt.Errorf("header %s: %w", h.Name, err)
		}
		o.attributes = append(o.attributes, driver.Header{Name: h.Name, Value: value})
		o.size += len(h.Name) + len(value) + len(stringType)
	}
	if len(o.attributes) > maxAttributes {
		return nil, fmt.Errorf("%d headers: SQS takes %d attributes", len(o.attributes), maxAttributes)
	}
	if fifo {
		o.group, o.duplicate = identifier(m.Key), identifier(m.ID)
		if m.ID == "" {
			o.duplicate = rand.Text()
		}
	}
	return o, nil
}

// text is a body as SQS takes it. Two characters that JSON allows and SQS does not
// can only be inside strings of JSON, where they can be escaped.
func text(b []byte) (string, error) {
	if !utf8.Valid(b) {
		return "", errContent
	}
	s := string(b)
	if strings.ContainsAny(s, "\ufffe\uffff") && json.Valid(b) {
		s = strings.NewReplacer("\ufffe", `\ufffe`, "\uffff", `\uffff`).Replace(s)
	}
	for _, r := range s {
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == '\ufffe' || r == '\uffff' {
			return "", errContent
		}
	}
	return s, nil
}

// identifier is an id as SQS takes it for groups and deduplication: at most 128
// letters, digits and marks of ASCII. Any other is hashed.
func identifier(id string) string {
	legal := id != "" && len(id) <= 128
	for n := range len(id) {
		legal = legal && id[n] > ' ' && id[n] < 0x7f
	}
	if legal {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:])
}

func attributeValues(headers driver.Headers) map[string]types.MessageAttributeValue {
	values := make(map[string]types.MessageAttributeValue, len(headers))
	for _, h := range headers {
		values[h.Name] = types.MessageAttributeValue{DataType: aws.String(stringType), StringValue: aws.String(h.Value)}
	}
	return values
}

// incoming is what a received message says.
type incoming struct {
	headers   driver.Headers
	body      []byte
	eventType string // "" when it does not say
}

// notification is an SNS message that was not delivered raw, which the codec
// reads; here only its type matters,
// https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html
type notification struct {
	Type              string
	TopicArn          string
	Message           string
	MessageAttributes map[string]struct{ Type, Value string }
}

// parse reads a message, and looks for its type: in the attributes, in the
// notification around it, in the body.
func parse(m *types.Message) incoming {
	in := incoming{body: []byte(aws.ToString(m.Body))}
	for name, value := range m.MessageAttributes {
		if value.StringValue != nil {
			in.headers = append(in.headers, driver.Header{Name: name, Value: *value.StringValue})
		}
	}
	slices.SortFunc(in.headers, func(a, b driver.Header) int { return strings.Compare(a.Name, b.Name) })
	if in.eventType = in.headers.Get(driver.HeaderEventType); in.eventType != "" {
		return in
	}
	body := in.body
	if bytes.Contains(body, []byte(`"TopicArn"`)) {
		var n notification
		if json.Unmarshal(body, &n) == nil && n.Type == "Notification" && n.TopicArn != "" {
			if in.eventType = n.MessageAttributes[driver.HeaderEventType].Value; in.eventType != "" {
				return in
			}
			body = []byte(n.Message)
		}
	}
	var said struct {
		EventType string `json:"eventType"`
	}
	if json.Unmarshal(body, &said) == nil {
		in.eventType = said.EventType
	}
	return in
}
