// One publisher per broker. Each says JSON of what it is given, and the event's name
// where its broker has a place for that.
import type { SQSClient } from '@aws-sdk/client-sqs'
import { SendMessageCommand } from '@aws-sdk/client-sqs'
import type { Redis } from 'ioredis'
import type { Producer } from 'kafkajs'
import type { EventPublisher } from './contracts.js'

export class KafkaEventPublisher implements EventPublisher {
  constructor(
    private readonly producer: Producer,
    private readonly prefix: string,
  ) {}

  async publish<T extends Record<string, unknown>>(eventName: string, payload: T): Promise<void> {
    await this.producer.send({
      topic: `${this.prefix}events.${eventName.replace(/\./g, '-')}`,
      messages: [
        {
          key: eventName,
          value: JSON.stringify(payload),
          headers: { eventType: eventName, timestamp: new Date().toISOString() },
        },
      ],
    })
  }
}

export interface QueueUrlResolver {
  resolve(eventName: string): string
}

export class SQSEventPublisher implements EventPublisher {
  constructor(
    private readonly sqsClient: SQSClient,
    private readonly queueUrlResolver: QueueUrlResolver,
  ) {}

  async publish<T extends Record<string, unknown>>(eventName: string, payload: T): Promise<void> {
    await this.sqsClient.send(
      new SendMessageCommand({
        QueueUrl: this.queueUrlResolver.resolve(eventName),
        MessageBody: JSON.stringify(payload),
        MessageAttributes: { eventType: { StringValue: eventName, DataType: 'String' } },
      }),
    )
  }
}

export class RedisEventPublisher implements EventPublisher {
  constructor(
    private readonly redis: Redis,
    private readonly prefix: string,
  ) {}

  async publish<T extends Record<string, unknown>>(eventName: string, payload: T): Promise<void> {
    await this.redis.publish(this.prefix + eventName, JSON.stringify(payload))
  }
}
